"""Small preprocessed datasets written directly, and trainers on them: any labels, any dimension, in milliseconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from architectures import architecture
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_conemos.networks.spec import PLANS_KEY

NAME = "Dataset999_World"
CONFIGURATION = "tiny"
SQUARE_DISC = {"background": 0, "square": 1, "disc": 2}


def shapes(rng: np.random.Generator, size: int = 32, depth: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """An image [depth,size,size] with one square (label 1) and one brighter disc (label 2), and its label map."""
    target = np.zeros((depth, size, size), dtype=np.int8)
    half = size // 2
    corners = [(0, 0), (0, half), (half, 0), (half, half)]
    (a, b), (c, d) = (corners[i] for i in rng.permutation(4)[:2])
    r = rng.integers(size // 8, size // 6 + 1)
    y, x = np.mgrid[:size, :size]
    cy, cx = a + half // 2 + rng.integers(-1, 2), b + half // 2 + rng.integers(-1, 2)
    target[:, (abs(y - cy) <= r) & (abs(x - cx) <= r)] = 1
    cy, cx = c + half // 2 + rng.integers(-1, 2), d + half // 2 + rng.integers(-1, 2)
    target[:, (y - cy) ** 2 + (x - cx) ** 2 <= (r + 1) ** 2] = 2
    image = target + rng.normal(0, 0.3, target.shape)
    return image.astype(np.float32), target


def write_world(
    base: Path,
    cases: dict[str, tuple[np.ndarray, np.ndarray]],
    labels: dict,
    sources: dict | None,
    dim: int = 2,
    kind: str = "plain",
    batch_size: int = 4,
    features: tuple[int, ...] = (4, 6, 8),
    **more: object,
) -> dict:
    """Write `cases` (image, label map as the annotators left it; [Z,Y,X]) as preprocessed data; returns the plans.

    Images of several channels are [M,Z,Y,X]. `options` go under the key `conemos` of the configuration, everything
    else of `more` into dataset.json.
    """
    options = more.pop("options", {})
    cases = {case: (image if image.ndim == 4 else image[None], target) for case, (image, target) in cases.items()}
    channels, *size = next(iter(cases.values()))[0].shape
    folder = base / "nnUNet_preprocessed" / NAME
    data = folder / CONFIGURATION
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    dataset_json = {
        "labels": labels,
        "channel_names": {str(channel): "MRI" for channel in range(channels)},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
        **more,
    }
    regions = [v for name, v in labels.items() if name not in ("background", "ignore")]
    if any(isinstance(v, list) for v in regions):
        dataset_json["regions_class_order"] = [v[0] if isinstance(v, list) else v for v in regions]
    if sources is not None:
        dataset_json["sources"] = sources
    manager = LabelManager(labels, dataset_json.get("regions_class_order"))
    wanted = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    if manager.has_ignore_label:
        wanted.append([-1, *manager.all_labels])
    for case, (image, target) in cases.items():
        locations = DefaultPreprocessor._sample_foreground_locations(target[None], wanted)
        crop = {"shape_before_cropping": target.shape, "bbox_used_for_cropping": [[0, side] for side in target.shape]}
        properties = {"class_locations": locations, "spacing": [1.0, 1.0, 1.0], **crop}
        blocks = image.shape, (1, *target.shape)
        nnUNetDatasetBlosc2.save_case(
            image, target[None], properties, str(data / case), blocks[0], blocks[0], blocks[1], blocks[1]
        )
    plans = {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "label_manager": "LabelManager",
        "configurations": {
            CONFIGURATION: {
                "data_identifier": CONFIGURATION,
                "batch_size": batch_size,
                "patch_size": size[1:] if dim == 2 else size,
                "batch_dice": True,
                "use_mask_for_norm": [False] * channels,
                "conemos": options,
                "spacing": [1.0] * dim,
                "architecture": architecture(dim, kind, features=features),
            }
        },
    }
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    (folder / "dataset_fingerprint.json").write_text("{}")
    return plans


def make_trainer(
    base: Path,
    trainer: type,
    fold: int | str = 0,
    configuration: str = CONFIGURATION,
    device: str = "cpu",
    **settings: object,
):
    """A trainer on the world below `base`, as nnU-Net makes it; `settings` are nnU-Net's hyper-parameters."""
    folder = base / "nnUNet_preprocessed" / NAME
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    dataset_json = json.loads((folder / "dataset.json").read_text())
    made = trainer(plans, configuration, fold, dataset_json, torch.device(device))
    for name, value in settings.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def train(trainer, steps: int, seed: int = 0):
    """Some steps through the trainer's own loader and train_step, with nnU-Net's decay of the learning rate over them.

    Returns the network, ready to predict.
    """
    np.random.seed(seed)
    torch.manual_seed(seed)
    if not trainer.was_initialized:
        trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    trainer.network.train()
    trainer.lr_scheduler.max_steps = steps
    for step in range(steps):
        trainer.lr_scheduler.step(step)
        trainer.train_step(next(loader))
    trainer.set_deep_supervision_enabled(False)
    return trainer.network.eval()


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (predicted & truth).sum() / max(1, predicted.sum() + truth.sum())


def world(base, labels, dim, kind, ignore=False, unlabelled=False):
    rng = np.random.default_rng(0)
    cases = {}
    for i in range(12 if unlabelled else 10):
        image, target = shapes(rng, 16, 16 if dim == 3 else 4)
        if ignore:
            target[:, :4] = 4
        cases[f"{'u' if i >= 10 else 'ab'[i % 2]}{i}"] = image, target
    labels = labels | ({"ignore": 4} if ignore else {})
    names = [n for n in labels if n not in ("background", "ignore")]
    sources = {"A": {"cases": ["a*"], "annotated": names[:2]}, "B": {"cases": ["b*"], "annotated": names}}
    if unlabelled:
        sources["U"] = {"cases": ["u*"], "annotated": []}
    write_world(base, cases, labels, sources, dim, kind, batch_size=2)


def two_stream_world(
    base, unlabelled=6, labelled=4, batch_size=2, features=(4, 6, 8), size=16, seed=0, draw=None, absent=None, **options
):
    """Cases a* annotate squares, b* discs, u* nothing; `draw(rng, group)` draws an image and its labels.

    `absent`: unlabelled case -> labels that image tags rule out in it.
    """
    rng, draw = np.random.default_rng(seed), draw or (lambda rng, group: shapes(rng, size))
    cases = {}
    for group, label in (("a", 1), ("b", 2)):
        for i in range(labelled):
            image, target = draw(rng, group)
            cases[f"{group}{i}"] = image, np.where(target == label, target, 0).astype(np.int8)
    bare, absent = [f"u{i:02d}" for i in range(unlabelled)], absent or {}
    cases |= {case: (draw(rng, "u")[0], np.zeros((1, size, size), np.int8)) for case in bare}
    sources = {
        "A": {"cases": ["a*"], "annotated": ["square"]},
        "B": {"cases": ["b*"], "annotated": ["disc"]},
    }
    for case in bare:
        sources[f"U {case}"] = {"cases": [case], "annotated": [], "tagged": absent.get(case, [])}
    tags = {"cases": {case: dict.fromkeys(labels, False) for case, labels in absent.items()}}
    made = write_world(base, cases, SQUARE_DISC, sources, batch_size=batch_size, features=features, tags=tags)
    made["configurations"]["tiny"][PLANS_KEY] = options
    (base / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps(made))
