"""Trainers whose labels may leave early, validated as nnU-Net does it, but in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from worlds import CONFIGURATION, NAME, make_trainer, write_world

from nnunetv2_conemos.methods import ConditionalFiLMTrainer

LABELS = {"background": 0, **{f"l{k}": k for k in range(1, 6)}}
REGIONS = {"background": 0, "whole": [1, 2, 3], "body": [2, 3], "core": 3}


def blobs(rng: np.random.Generator, size: tuple[int, int, int], labels: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with a cube of its own signal for most labels, and its label map."""
    target = np.zeros(size, np.int8)
    for label in range(1, labels + 1):
        corner = [rng.integers(0, max(1, side - 5)) for side in size]
        if rng.random() < 0.8:
            target[tuple(slice(c, c + 5) for c in corner)] = label
    return (target + rng.normal(0, 0.2, size)).astype(np.float32), target


def moved_trainer(
    base: Path,
    dim: int = 2,
    labels: dict = LABELS,
    trainer: type = ConditionalFiLMTrainer,
    spacing: float = 1.0,
    mirroring: bool = True,
    **options: Any,
) -> Any:
    """A trainer on images larger than its patch, each of whose parameters was moved, as training would.

    `spacing`: of the images; the network sees a spacing of 1.
    """
    rng, size = np.random.default_rng(0), (24, 24, 16) if dim == 3 else (1, 20, 32)
    cases = {f"c{i}": blobs(rng, size, 5 if labels is LABELS else 3) for i in range(5)}
    write_world(base, cases, labels, None, dim, "plain", 2, options=options)
    folder = base / "nnUNet_preprocessed" / NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "image_reader_writer": "SimpleITKIO"}
    plans["configurations"][CONFIGURATION] |= {
        "patch_size": [16] * dim,
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["c0", "c1", "c2"], "val": ["c3", "c4"]}]))
    made = make_trainer(base, trainer)
    made.initialize()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    made.inference_allowed_mirroring_axes = tuple(range(dim)) if mirroring else None
    made.spacing_of_images = spacing
    return made


def predicted(trainer: Any, where: str = "validation") -> dict[str, np.ndarray]:
    """Predict and write every validation case with nnU-Net's functions; returns the logits of each."""
    folder = Path(trainer.output_folder) / where
    folder.mkdir(exist_ok=True)
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    managers = trainer.plans_manager, trainer.configuration_manager
    axes = trainer.inference_allowed_mirroring_axes
    predictor.manual_initialization(trainer.network, *managers, None, trainer.dataset_json, "", axes)
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, trainer.do_split()[1], None)
    found = {}
    for case in dataset.identifiers:
        data, _, _, properties = dataset.load_case(case)
        logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(data[:]))
        found[case] = logits.numpy().copy()
        written = written_properties(properties, data.shape[1:], trainer.spacing_of_images)
        how = trainer.configuration_manager, trainer.plans_manager, trainer.dataset_json
        export_prediction_from_logits(logits, written, *how, str(folder / case))
    return found


def written_properties(properties: dict[str, Any], size: tuple[int, ...], spacing: float) -> dict[str, Any]:
    """Complete the properties of a case whose image is larger than what nnU-Net's preprocessing made of it."""
    cropped = [round(side / spacing) for side in size]
    box = [[2, 2 + side] for side in cropped]
    properties |= {
        "shape_after_cropping_and_before_resampling": cropped,
        "shape_before_cropping": [side + 3 for side in cropped],
        "bbox_used_for_cropping": box,
        "spacing": [spacing] * 3,
        "sitk_stuff": {"spacing": [spacing] * 3, "origin": [0.0] * 3, "direction": list(np.eye(3).ravel())},
    }
    return properties


def choose_bounds(trainer: Any) -> dict[str, np.ndarray]:
    """Validate and keep the bounds, as `perform_actual_validation` does; returns the exact logits."""
    with trainer.watched() as cases:
        exact = predicted(trainer)
    trainer.keep_bounds(trainer.chosen_bounds(cases), len(cases))
    return exact


def fine_rows(network: Any, call: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call gives, and how many rows its finest stage computed."""
    rows: list[int] = []
    hook = network.decoder.stages[-1].register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    result = call()
    hook.remove()
    return result, sum(rows)
