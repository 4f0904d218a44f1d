"""Values of labels that a case is not annotated for change nothing: no patch, no augmented target, no loss."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from architectures import LABELS, REGIONS
from every_trainer import TRAINERS
from worlds import NAME, make_trainer, shapes, write_world

from nnunetv2_conemos import methods
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.label_maps import visible_values
from nnunetv2_conemos.training.annotated import AnnotatedDataset, VisibleMap, value_array
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

IGNORE = 4
STEPS = 3


def same_to_annotators(target: np.ndarray, labels: dict, annotated: list[str], rng: np.random.Generator) -> np.ndarray:
    """Give each voxel a random value among those that an annotator of these labels cannot tell from its own."""
    seen = visible_values(LabelSpace.from_dataset_json({"labels": labels}), annotated)
    poisoned = target.copy()
    for value in set(np.unique(target)) & set(seen):
        same = [other for other in seen if seen[other] == seen[value]]
        here = target == value
        poisoned[here] = rng.choice(same, here.sum())
    return poisoned


def poisoned_world(base, labels: dict, dim: int, ignore: bool, whole: bool, poison: bool) -> None:
    """Write cases of three sources, a* and b* annotated for some labels, u* for none, as annotated or poisoned.

    Patches are smaller than the images, unless they must be `whole`. In 3D, more voxels are annotated than the 10,000
    of which nnU-Net keeps locations.
    """
    labels = labels | ({"ignore": IGNORE} if ignore else {})
    names = [name for name in labels if name not in ("background", "ignore")]
    annotated = {"a": names[:2], "b": names[1:], "u": []}
    space = LabelSpace.from_dataset_json({"labels": labels})
    rng, bad, cases = np.random.default_rng(0), np.random.default_rng(1), {}
    for i in range(12):
        group = "abu"[i % 3]
        image, target = shapes(rng, 24, 24 if dim == 3 else 2)
        target[:, target[0] == 1] = rng.choice([1, 3])
        if ignore:
            target[:, :3] = IGNORE
        target = value_array(visible_values(space, annotated[group]))[target]
        target[..., :2] = np.where(target[..., :2] == 0, -1, target[..., :2])
        cases[f"{group}{i}"] = image, same_to_annotators(target, labels, annotated[group], bad) if poison else target
    sources = {group: {"cases": [f"{group}*"], "annotated": known} for group, known in annotated.items()}
    plans = write_world(base, cases, labels, sources, dim, batch_size=2, options={"width_divisor": 16} if whole else {})
    if not whole:
        plans["configurations"]["tiny"]["patch_size"] = [16] * dim
        (base / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps(plans))


def tensors(batch) -> list:
    """Everything in a batch, or in the batches of two streams, as arrays."""
    if isinstance(batch, tuple):
        return [array for one in batch for array in tensors(one)]
    targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
    return [np.asarray(x) for x in (batch["keys"], batch["data"], *targets)]


def training(base, trainer: type[PartialLabelTrainer]) -> tuple[list[list], list[float], list[str]]:
    """Train some steps, then validate; return all batches, all numbers that steps report, and the changed cases."""
    np.random.seed(0)
    torch.manual_seed(0)
    made = make_trainer(base, trainer)
    made.initialize()
    loader, validation = made.get_dataloaders()
    batches, numbers = [], []
    made.network.train()
    for step in range(STEPS + 1):
        batch = next(loader if step < STEPS else validation)
        batches.append(tensors(batch))
        with torch.set_grad_enabled(step < STEPS):
            report = made.train_step(batch) if step < STEPS else made.validation_step(batch)
        numbers.append({name: np.asarray(value).tolist() for name, value in report.items()})
    return batches, numbers


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


EVERYWHERE = [
    (trainer, labels, dim, ignore)
    for trainer in TRAINERS
    for labels in (LABELS, REGIONS)
    for dim in trainer.method.dimensions
    for ignore in (False, True)
    if labels is LABELS or trainer.method.regions
]


def in_selection(trainer, labels, dim, ignore) -> bool:
    """Every trainer once: every other one in 3D with an ignore label, the rest in 2D, with regions where it may."""
    if TRAINERS.index(trainer) % 2 or trainer.learns_from_unlabelled or not trainer.method.regions:
        return (labels, dim, ignore) == (REGIONS if trainer.method.regions else LABELS, 2, False)
    return (labels, dim, ignore) == (LABELS, max(trainer.method.dimensions), True)


@pytest.mark.parametrize(
    ("trainer", "labels", "dim", "ignore"),
    [pytest.param(*w, marks=[] if in_selection(*w) else pytest.mark.slow) for w in EVERYWHERE],
    ids=lambda v: getattr(v, "__name__", None) or {str(LABELS): "labels", str(REGIONS): "regions"}.get(str(v), str(v)),
)
def test_poison_changes_nothing(trainer, labels, dim, ignore, nnunet_folders):
    whole = issubclass(trainer, methods.CMERTrainer)
    poisoned_world(nnunet_folders, labels, dim, ignore, whole, poison=False)
    clean = training(nnunet_folders, trainer)
    poisoned_world(nnunet_folders, labels, dim, ignore, whole, poison=True)
    batches, numbers = training(nnunet_folders, trainer)
    assert same(batches, clean[0])
    assert numbers == clean[1]


def test_a_map_is_read_only_where_it_is_sliced_and_keeps_voxels_outside():
    class Stored(np.ndarray):
        def __getitem__(self, where):
            read.append(where)
            return super().__getitem__(where)

    read = []
    stored = np.array([[-1, 0, 1, 2, 3, 700]], np.int16).view(Stored)
    shown = VisibleMap(stored, value_array({0: 0, 1: 0, 2: 2, 3: 3}))
    assert not read
    assert shown.shape == (1, 6)
    where = slice(None), slice(0, 5)
    assert shown[where].tolist() == [[-1, 0, 0, 2, 3]]
    assert read == [where]
    assert shown[:].tolist() == [[-1, 0, 0, 2, 3, 0]], "a value that no label has is background"
    assert VisibleMap(np.array([-1, 1], np.int8), shown.values)[:].tolist() == [-1, 0]


def test_a_case_whose_map_shows_no_other_label_is_left_as_it_is():
    class Once:
        identifiers = ("whole", "part")

        def load_case(self, case):
            return None, target, None, {"class_locations": locations}

    target = np.array([[[0, 1, 2], [2, 2, 1]]], np.int8)
    locations = {1: np.argwhere(target == 1), 2: np.argwhere(target == 2)}
    sources = {"w": {"cases": ["whole"], "annotated": ["one", "two"]}, "p": {"cases": ["part"], "annotated": ["two"]}}
    labels = {"background": 0, "one": 1, "two": 2}
    table = SourceTable.from_dataset_json({"labels": labels, "sources": sources}, Once.identifiers)
    dataset = AnnotatedDataset(Once(), table, (1, 2))
    assert dataset.changed == ["part"]
    _, whole, _, properties = dataset.load_case("whole")
    assert whole is target
    assert properties["class_locations"] is locations
    _, part, _, properties = dataset.load_case("part")
    assert part[:].tolist() == [[[0, 0, 2], [2, 2, 0]]]
    assert list(properties["class_locations"]) == [2]
    assert sorted(properties["class_locations"][2].tolist()) == locations[2].tolist()


@pytest.mark.parametrize("error", [EOFError("Ran out of input"), RuntimeError("[blosc2] no frame"), KeyError("x")])
def test_a_case_whose_preprocessed_files_are_damaged_is_named(error):
    class Damaged:
        identifiers = ("c1",)

        def load_case(self, case):
            raise error

    sources = {"s": {"cases": ["c1"], "annotated": ["one"]}}
    table = SourceTable.from_dataset_json({"labels": {"background": 0, "one": 1}, "sources": sources}, ["c1"])
    with pytest.raises(OSError, match=r"case 'c1': its preprocessed files cannot be read .*Preprocess again"):
        AnnotatedDataset(Damaged(), table, (1,)).load_case("c1")
