"""Which cases may train and test; what does not fit is found before anything is written or trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmarks import spacing_of
from raw_worlds import read_nifti, write_nifti

from nnunetv2_conemos.benchmark.cases import choose_cases
from nnunetv2_conemos.benchmark.config import Recipe
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.files import write_json


def refused(raw: Path, **recipe: object) -> str:
    """The message about a recipe that cannot be run."""
    with pytest.raises((ValueError, OSError)) as caught:
        choose_cases(Recipe.model_validate({"dataset": "901", **recipe}), raw, 1)
    return str(caught.value)


def test_missing_truth(phantom: Path):
    (phantom / "labelsTs/test_00.nii.gz").unlink()
    assert "no label map of test_00" in refused(phantom)


def test_complete_labels_are_refused_unless_some_are_hidden(phantom: Path):
    content = read_dataset_json(phantom)
    write_json(phantom / "dataset.json", {key: content[key] for key in content if key != "sources"})
    assert "all labels are annotated in every case, so there is nothing to compare" in refused(phantom)
    hide = {"per_case": 1}
    assert "hold_out 99: expected that many" in refused(phantom, hold_out=99, hide=hide)
    assert choose_cases(Recipe.model_validate({"dataset": "901", "hide": hide}), phantom, 1).table.is_complete


def test_a_recipe_may_train_on_a_few_of_the_cases_that_are_not_held_out(phantom: Path):
    content = read_dataset_json(phantom)
    write_json(phantom / "dataset.json", {key: content[key] for key in content if key != "sources"})
    few = {"dataset": "901", "hide": {"per_case": 1}, "hold_out": 2, "training_cases": 3}
    chosen = choose_cases(Recipe.model_validate(few), phantom, 1)
    assert len(chosen.held_out) == 2
    assert len(chosen.train) == 3
    assert not set(chosen.held_out) & set(chosen.train)
    assert choose_cases(Recipe.model_validate(few), phantom, 1).train == chosen.train
    everything = choose_cases(Recipe.model_validate(few | {"training_cases": 0}), phantom, 1)
    assert len(everything.train) == 7
    assert "training_cases 8: expected at least so many cases" in refused(phantom, **few | {"training_cases": 8})


def test_training_cases_are_no_test_cases(phantom: Path):
    test = {"images": phantom / "imagesTr", "labels": phantom / "labelsTr"}
    assert "found training case(s) site_a_00, site_a_01" in refused(phantom, test=test)
    for file in (phantom / "imagesTs").glob("*.nii.gz"):
        file.unlink()
        file.symlink_to(phantom / "imagesTr/site_a_00_0000.nii.gz")
    assert "found training case(s) test_00, test_01" in refused(phantom), "by another name"


def test_truth_without_any_label(phantom: Path):
    for file in (phantom / "labelsTs").iterdir():
        write_nifti(file, np.zeros_like(read_nifti(file)), spacing_of(file))
    assert "labelsTs: no test case shows any label" in refused(phantom)


def test_truth_of_other_labels(phantom: Path):
    file = phantom / "labelsTs/test_01.nii.gz"
    write_nifti(file, np.full_like(read_nifti(file), 77), spacing_of(file))
    assert "test_01.nii.gz: expected the label values of liver" in refused(phantom)


def test_a_test_image_without_a_channel(phantom: Path):
    shutil.copy(phantom / "imagesTs/test_00_0000.nii.gz", phantom / "imagesTs/test_00_0001.nii.gz")
    assert "expected 2 channels, found fewer of test_01_0000.nii.gz" in refused(phantom)
