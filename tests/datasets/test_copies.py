"""Raw and preprocessed copies of a dataset agree by content, or check, declare and training say where they do not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from phantoms import PHANTOM

from nnunetv2_conemos.datasets.check import check
from nnunetv2_conemos.datasets.declare import declare
from nnunetv2_conemos.datasets.splits import SPLITS
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.methods import ConditionalFiLMTrainer


class World:
    """The phantom, raw and preprocessed."""

    def __init__(self, base: Path):
        self.raw, self.preprocessed = (base / name / PHANTOM for name in ("nnUNet_raw", "nnUNet_preprocessed"))

    def label(self, case: str) -> Path:
        return self.raw / "labelsTr" / f"{case}.nii.gz"

    def image(self, case: str) -> Path:
        return self.raw / "imagesTr" / f"{case}_0000.nii.gz"

    def trainer(self, configuration: str = "3d_fullres") -> ConditionalFiLMTrainer:
        plans = json.loads((self.preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
        dataset_json = json.loads((self.preprocessed / "dataset.json").read_text())
        return ConditionalFiLMTrainer(plans, configuration, 0, dataset_json, torch.device("cpu"))

    def refused(self) -> str:
        with pytest.raises(SourceError) as caught:
            self.trainer()
        return str(caught.value)


@pytest.fixture
def world(preprocessed_phantom: Path) -> World:
    return World(preprocessed_phantom)


def change(file: Path, add: int, compress: bool = True) -> None:
    """Add to the voxels of a corner; 0 writes the same voxels in other bytes."""
    before = SimpleITK.ReadImage(str(file))
    array = SimpleITK.GetArrayFromImage(before).astype(np.int16)
    array[:3, :8, :8] += add
    after = SimpleITK.GetImageFromArray(array)
    after.CopyInformation(before)
    SimpleITK.WriteImage(after, str(file), compress)


def errors() -> str:
    return "\n".join(f"{f.where}: {f.what} {f.remedy}" for f in check(PHANTOM).findings if f.severity == "error")


def test_copies_that_agree_are_silent(world: World):
    assert not check(PHANTOM).findings
    world.trainer()


def test_a_map_that_was_corrected_later_is_named(world: World):
    change(world.label("site_a_01"), 1)
    assert "labelsTr/site_a_01.nii.gz differs from its preprocessed copy" in errors()
    refused = world.refused()
    assert "labelsTr/site_a_01.nii.gz differs from its preprocessed copy" in refused
    assert f"Preprocess again: nnUNetv2_plan_and_preprocess -d {PHANTOM}" in refused
    assert "Delete" not in refused


def test_a_map_with_an_older_time_needs_its_copy_deleted(world: World):
    change(world.label("site_a_01"), 1)
    os.utime(world.label("site_a_01"), (1e9, 1e9))
    assert "gt_segmentations: nnU-Net replaces only files older than yours." in world.refused()


def test_other_bytes_of_the_same_voxels_are_no_difference(world: World):
    change(world.label("site_a_01"), 0)
    assert not errors()
    world.trainer()


def test_only_the_configuration_preprocessed_last_is_fresh(world: World):
    """Preprocessing 2d after an edit renews `gt_segmentations`; 3d_fullres still holds the old map."""
    change(world.label("site_a_01"), 1)
    shutil.copy2(world.label("site_a_01"), world.preprocessed / "gt_segmentations")
    wrong = "nnUNetPlans_3d_fullres: image or label map has changed since preprocessing: site_a_01."
    assert wrong in errors()
    assert wrong in world.refused()


@pytest.mark.parametrize("moved", [False, True], ids=["edited", "replaced by an older file"])
def test_an_image_that_changed_is_found_whatever_its_time(world: World, moved: bool):
    change(world.image("site_b_00"), 900)
    if moved:
        os.utime(world.image("site_b_00"), (1e9, 1e9))
    assert "image or label map has changed since preprocessing: site_b_00." in errors()
    assert "site_b_00" in world.refused()


def test_files_that_only_look_newer_are_compared_and_pass(world: World):
    for file in world.raw.rglob("*.nii.gz"):
        file.touch()
    found = check(PHANTOM).findings
    assert [f.severity for f in found] == ["warning", "warning"], "2d and 3d_fullres"
    assert "1 further case(s) have files that were written" in found[0].what
    world.trainer()


def test_added_and_removed_cases_are_named_by_check_declare_and_training(world: World):
    world.image("site_c_00").rename(world.image("new"))
    world.label("site_c_00").rename(world.label("new"))
    wrong = f"preprocessed for other cases than {world.raw} has now (missing: new; no longer in raw: site_c_00)."
    assert wrong in errors()
    assert wrong in world.refused()
    with pytest.raises(SourceError, match="preprocessed for other cases"):
        declare(PHANTOM, {"new": ["liver"]}, missing="unlabelled", overwrite=True)


def test_without_raw_cases_training_uses_what_is_preprocessed(world: World):
    shutil.rmtree(world.raw / "imagesTr")
    world.trainer()
    shutil.rmtree(world.raw)
    world.trainer()


def test_the_folds_of_the_raw_dataset_are_those_that_training_uses(world: World):
    cases = [f"site_{site}_0{number}" for site in "abc" for number in range(3)]
    folds = [{"train": cases[1:], "val": cases[:1]}, {"train": cases[:-1], "val": cases[-1:]}]
    write_json(world.raw / SPLITS, folds)
    trainer = world.trainer()
    trainer.initialize()
    with pytest.raises(SourceError, match="was written after planning, so training would not use it"):
        trainer.do_split()
    assert not (world.preprocessed / SPLITS).exists()
    write_json(world.preprocessed / SPLITS, folds[::-1])
    with pytest.raises(SourceError, match=r"fold 0 of .*nnUNet_raw.* differs"):
        trainer.do_split()
    assert "fold 0 of" in errors()
    write_json(world.preprocessed / SPLITS, [*folds, folds[0]])
    assert trainer.do_split() == (cases[1:], cases[:1])
    assert not errors()
