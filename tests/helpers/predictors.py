"""nnU-Net's predictor and ours on one untrained network, in memory: any labels, grid and trainer, in milliseconds."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from architectures import architecture, build
from architectures import plans as bare_plans
from nnunetv2.inference.data_iterators import PreprocessAdapterFromNpy
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.inference.streaming import StreamingPredictor
from nnunetv2_conemos.methods import ConditionalFiLMTrainer

DEFAULT, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
MODEL = {
    "labels": {"background": 0, "l1": 1},
    "channel_names": {"0": "MRI"},
    "file_ending": ".nii.gz",
}


def labels_of(number: int) -> dict[str, int]:
    return {"background": 0} | {f"l{k}": k for k in range(1, number + 1)}


def plans_for_prediction(
    labels: dict, dim: int, spacing: float, transpose: tuple[int, ...], resample: str, **options: Any
) -> PlansManager:
    """Plans as prediction from raw images needs them; `spacing` of the voxels, where raw ones have 1."""
    plans = deepcopy(bare_plans(dim, labels=labels, **options).plans)
    of_data, of_labels = ({"is_seg": is_seg, "force_separate_z": None} for is_seg in (False, True))
    plans |= {
        "label_manager": "LabelManager",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(transpose),
        "transpose_backward": np.argsort(transpose).tolist(),
        "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
    }
    plans["configurations"]["tiny"] |= {
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": [spacing] * dim,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "architecture": architecture(dim, "plain", features=(4, 4, 4)),
        **{f"resampling_fn_{what}": DEFAULT for what in ("data", "seg")},
        "resampling_fn_data_kwargs": of_data,
        "resampling_fn_seg_kwargs": of_labels,
        "resampling_fn_probabilities": resample,
        "resampling_fn_probabilities_kwargs": {**of_data, **({"order": 1} if resample == DEFAULT else {})},
    }
    return PlansManager(plans)


def both_predictors(
    labels: dict,
    trainer: type = ConditionalFiLMTrainer,
    *,
    dim: int = 3,
    spacing: float = 1.0,
    transpose: tuple[int, ...] = (0, 1, 2),
    resample: str = DEFAULT,
    mirrored: bool = False,
    folds: int = 1,
    seed: int = 0,
    **options: Any,
) -> tuple[nnUNetPredictor, StreamingPredictor]:
    """Both kinds of predictor, each with the same networks of its own."""
    manager = plans_for_prediction(labels, dim, spacing, transpose, resample, **options)
    dataset_json = MODEL | {"labels": labels}
    if any(isinstance(value, list) for value in labels.values()):
        dataset_json["regions_class_order"] = [v[0] if isinstance(v, list) else v for k, v in labels.items() if v != 0]
    weights = []
    for fold in range(folds):
        torch.manual_seed(seed + fold)
        network = build(trainer, manager, labels, deep=False)
        for name, parameter in network.named_parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
            parameter.data *= 5 if ".seg_layers." in name and parameter.ndim > 1 else 1  # logits vary over the image
        weights.append(network.state_dict())
    made = []
    for kind in (nnUNetPredictor, StreamingPredictor):
        network = build(trainer, manager, labels, deep=False)
        predictor = kind(use_mirroring=mirrored, device=torch.device("cpu"), allow_tqdm=False)
        axes = tuple(range(dim))
        tiny = manager.get_configuration("tiny")
        predictor.manual_initialization(network, manager, tiny, weights, dataset_json, trainer.__name__, axes)
        made.append(predictor)
    return made[0], made[1]


def raw_image(shape: tuple[int, ...] = (20, 21, 18), seed: int = 0) -> np.ndarray:
    """Noise [1,*S] in a frame of zeros, which nnU-Net cuts off."""
    image = np.zeros((1, *shape), dtype=np.float32)
    inner = tuple(slice(1, -2) for _ in shape)
    image[(0, *inner)] = np.random.default_rng(seed).normal(1, 1, image[(0, *inner)].shape)
    return image


def preprocessed(predictor: nnUNetPredictor, image: np.ndarray, output: str | None = None) -> dict[str, Any]:
    """What nnU-Net's iterators give for a raw image of voxels of 1 mm."""
    arguments = predictor.plans_manager, predictor.dataset_json, predictor.configuration_manager
    return next(PreprocessAdapterFromNpy([image], None, [{"spacing": [1.0] * 3}], [output], *arguments))


def stock_map(predictor: nnUNetPredictor, image: np.ndarray) -> np.ndarray:
    """The label map [*S] that nnU-Net makes of a raw image."""
    return np.asarray(predictor.predict_single_npy_array(image, {"spacing": [1.0] * 3}))


def streamed_map(
    predictor: StreamingPredictor, image: np.ndarray, at_once: int | None = None, workers: int = 0
) -> np.ndarray:
    """The label map [*S] that ours makes of it, with so many labels at once."""
    predictor.labels_at_once = at_once
    (found,) = predictor.predict_from_data_iterator([preprocessed(predictor, image)], False, workers)
    return found
