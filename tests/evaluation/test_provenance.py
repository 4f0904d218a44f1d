"""Predictions of another model, and evaluations that differ in more than the model, are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunetv2_conemos.cli import main
from nnunetv2_conemos.evaluation.provenance import labels_of_training

ABC = {"background": 0, "a": 1, "b": 2, "c": 3}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """References and predictions of two cases, which are alike, and a dataset.json of the dataset."""
    rng = np.random.default_rng(0)
    for case in ("x", "y"):
        voxels = np.repeat(np.repeat(rng.integers(0, 4, (3, 3, 3), dtype=np.uint8), 3, 0), 3, 1)
        for name in ("references", "first", "second"):
            write_map(tmp_path / name / f"{case}.nii.gz", voxels)
    write_labels(tmp_path / "dataset.json", ABC)
    return tmp_path


def write_map(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(exist_ok=True)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(file))


def write_labels(file: Path, labels: dict) -> None:
    regions = any(isinstance(value, list) for value in labels.values())
    order = {"regions_class_order": [1, 2, 3]} if regions else {}
    file.write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz", **order}))


def evaluate(folder: Path, model: str, *options: object, references: str = "references", dataset: str = "dataset.json"):
    what = (
        ("--complete", "-djfile", folder / dataset) if "--annotated" not in options else ("-djfile", folder / dataset)
    )
    words = ("evaluate", folder / references, folder / model, "-np", 1, "--overwrite", *what, *options)
    return main(list(map(str, words)))


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "c": 1, "b": 2, "a": 3},
        {"background": 0, "a": 1, "b": 2, "other": 3},
        {"background": 0, "a": [1, 2], "b": 2, "c": 3},
        {"background": 0, "c": 1},
        {**ABC, "d": 4},
    ],
    ids=["permuted", "renamed", "regions", "another value", "one more"],
)
def test_predictions_of_a_model_of_other_labels_are_refused(folders, labels, capsys):
    write_labels(folders / "first" / "dataset.json", labels)
    assert evaluate(folders, "first") == 2
    message = capsys.readouterr().err
    assert f"expected: {json.dumps(ABC)}\n  found: {json.dumps(labels)}" in message
    assert str(folders / "first" / "dataset.json") in message
    assert not list((folders / "first").glob("evaluation*"))


def test_predictions_of_some_labels_are_scored_for_those(folders, capsys):
    write_labels(folders / "first" / "dataset.json", {"background": 0, "a": 1, "ignore": 2})
    for file in (folders / "first").glob("*.nii.gz"):
        voxels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        write_map(file, np.where(voxels == 1, voxels, 0).astype(np.uint8))
    assert evaluate(folders, "first") == 2
    assert "The model never predicts b, c: name the labels to score with --annotated." in capsys.readouterr().err
    (folders / "a.json").write_text(json.dumps({"x": ["a"], "y": ["a"]}))
    assert evaluate(folders, "first", "--annotated", folders / "a.json") == 0
    assert json.loads((folders / "first" / "evaluation.json").read_text())["mean"]["dice"] == 1
    assert "Note" not in capsys.readouterr().out


def test_predictions_of_other_tools_are_scored_with_a_note(folders, capsys):
    assert evaluate(folders, "first") == 0
    assert "Note: " + str(folders / "first") + " holds no dataset.json" in " ".join(capsys.readouterr().out.split())


def compare(folders: Path, *options: str) -> int:
    return main(["compare", str(folders / "first"), str(folders / "second"), *options])


def test_evaluations_of_the_same_references_are_compared(folders, capsys):
    assert evaluate(folders, "first") == evaluate(folders, "second", "--tolerance", 1) == 0
    assert compare(folders) == 0
    assert compare(folders, "--metric", "nsd") == 2
    message = capsys.readouterr().err
    assert "different tolerances of the NSD cannot be compared" in message
    assert f"{folders / 'first' / 'evaluation.json'}: 2 mm" in message


def test_evaluations_of_other_references_or_labels_are_refused(folders, capsys):
    assert evaluate(folders, "first") == 0
    write_map(folders / "others" / "x.nii.gz", np.ones((9, 9, 3), np.uint8))
    write_map(folders / "others" / "y.nii.gz", np.ones((9, 9, 3), np.uint8))
    assert evaluate(folders, "second", references="others") == 0
    assert compare(folders) == 2
    assert "different reference maps of x, y cannot be compared" in capsys.readouterr().err
    permuted = {"background": 0, "b": 1, "a": 2, "c": 3}
    write_labels(folders / "permuted.json", permuted)
    assert evaluate(folders, "second", dataset="permuted.json") == 0
    assert compare(folders) == 2
    assert f"evaluation.json: {json.dumps(permuted)}" in capsys.readouterr().err


def test_an_evaluation_that_does_not_tell_is_compared_with_a_note(folders, capsys):
    assert evaluate(folders, "first") == evaluate(folders, "second") == 0
    (folders / "second" / "evaluation.json").unlink()
    assert compare(folders) == 0
    assert "Not checked, labels and references are not recorded" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{}", '{"dataset_json": "dict("}', '{"dataset_json": "{1: 2}"}', "broken"])
def test_a_fold_without_a_note_of_its_labels(tmp_path, content):
    if content is not None:
        (tmp_path / "debug.json").write_text(content)
    assert labels_of_training(tmp_path) is None
