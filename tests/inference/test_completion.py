"""Missing labels are filled in, and what is annotated stays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from models import HOW
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from phantoms import PHANTOM
from raw_worlds import read_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.inference import completion as complete
from nnunetv2_conemos.inference.completed_map import is_unsure

LABELS = ["liver", "spleen", "stomach", "gallbladder"]


TARGET = "Dataset911_Complete"


def maps(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: read_nifti(file) for file in sorted(folder.glob("*.nii.gz"))}


def run_complete(model: Path, *words: str) -> int:
    return cli.main(["complete", "-m", str(model), "-d", "901", "-o", TARGET, *HOW, *words])


def raw_table(base: Path) -> SourceTable:
    raw = base / "nnUNet_raw" / PHANTOM
    return SourceTable.from_dataset_json(json.loads((raw / "dataset.json").read_text()), raw_cases(raw))


def test_missing_labels_are_filled_in_and_annotated_voxels_stay(model, preprocessed_phantom, capsys):
    assert run_complete(model) == 0
    raw = preprocessed_phantom / "nnUNet_raw"
    result = json.loads((raw / TARGET / "dataset.json").read_text())
    assert "sources" not in result
    assert result["labels"] == {"background": 0, "liver": 1, "spleen": 2, "stomach": 3, "gallbladder": 4}
    table, files = raw_table(preprocessed_phantom), raw_cases(raw / TARGET)
    assert sorted(files) == table.cases
    filled: set[int] = set()
    for case, entry in files.items():
        before = read_nifti(raw / PHANTOM / "labelsTr" / f"{case}.nii.gz")
        after = read_nifti(Path(entry["label"]))
        own = [LABELS.index(name) + 1 for name in table.annotated(case)]
        assert (after[before > 0] == before[before > 0]).all()
        assert (np.isin(after, own) == np.isin(before, own)).all(), "annotated labels are the annotators'"
        filled |= set(np.unique(after[before == 0]))
        assert Path(entry["images"][0]).is_file()
    assert filled >= {0, 1, 2, 3}, "what was missing is filled in, as far as so short a training finds it"
    assert "filled in" in capsys.readouterr().out
    assert not list(raw.glob(".*"))


def test_uncertain_voxels_are_ignored(model, preprocessed_phantom):
    assert run_complete(model, "--uncertain", "0.1") == 0
    raw = preprocessed_phantom / "nnUNet_raw"
    labels = json.loads((raw / TARGET / "dataset.json").read_text())["labels"]
    assert LabelManager(labels, None).ignore_label == 5
    sure = completed_with(model, preprocessed_phantom)
    for case, certain in sure.items():
        before = read_nifti(raw / PHANTOM / "labelsTr" / f"{case}.nii.gz")
        after = read_nifti(raw / TARGET / "labelsTr" / f"{case}.nii.gz")
        assert (after == 5).any()
        assert (after[before > 0] == before[before > 0]).all(), "annotated voxels are never uncertain"
        assert (after[after != 5] == certain[after != 5]).all()


def completed_with(model: Path, base: Path) -> dict[str, np.ndarray]:
    words = ["complete", "-m", str(model), "-d", "901", "-o", "Dataset912_Sure", *HOW]
    assert cli.main(words) == 0
    folder = base / "nnUNet_raw" / "Dataset912_Sure" / "labelsTr"
    return {name.removesuffix(".nii.gz"): array for name, array in maps(folder).items()}


def test_cases_that_lack_nothing_stay_as_they_are(model, preprocessed_phantom):
    raw = preprocessed_phantom / "nnUNet_raw"
    file = raw / PHANTOM / "dataset.json"
    content = json.loads(file.read_text())
    rest = {**content["sources"]["site_a"], "cases": ["site_a_0[12]"]}
    complete_case = {"cases": ["site_a_00"], "annotated": list(LABELS)}
    content["sources"] |= {"site_a": rest, "complete": complete_case}
    file.write_text(json.dumps(content))
    assert run_complete(model, "--uncertain", "0.1") == 0
    before, after = (read_nifti(raw / name / "labelsTr" / "site_a_00.nii.gz") for name in (PHANTOM, TARGET))
    assert (before == after).all()


def test_unsure_is_what_decides():
    z = np.array([[0.0, 0.0, 0.0], [1.5, 0.3, 0.3], [-2.0, -2.0, 30.0]])  # background, a, b at three voxels
    softmax = np.exp(z) / np.exp(z).sum(0)
    assert is_unsure(softmax, [0, 1], False, 0.1).tolist() == [False, True, False]
    assert is_unsure(softmax, [0], False, 0.1).tolist() == [False, True, True]
    sigmoid = np.array([[0.9, 0.55], [0.45, 0.9]])
    assert is_unsure(sigmoid, [0, 1], True, 0.1).tolist() == [True, True]
    assert is_unsure(sigmoid, [0], True, 0.1).tolist() == [False, True]


def test_what_tags_say_is_absent_is_not_filled_in(model, preprocessed_phantom):
    raw = preprocessed_phantom / "nnUNet_raw"
    everywhere = completed_with(model, preprocessed_phantom)
    (here,) = (case for case in ("site_a_00",) if (everywhere[case] == 2).any())
    file = raw / PHANTOM / "dataset.json"
    content = json.loads(file.read_text())
    tagged = {"cases": [here], "annotated": ["liver"], "tagged": ["spleen", "stomach"]}
    rest = {**content["sources"]["site_a"], "cases": ["site_a_0[12]"]}
    of_case = {"spleen": [4, 5, 6, 7], "stomach": False}
    changed = {"sources": {**content["sources"], "site_a": rest, "tagged": tagged}, "tags": {"cases": {here: of_case}}}
    file.write_text(json.dumps(content | changed))
    assert run_complete(model) == 0
    found = maps(raw / TARGET / "labelsTr")[f"{here}.nii.gz"]
    before = everywhere[here]
    expected = np.where(before == 3, 0, before)  # the stomach is in no slice
    others = [z for z in range(len(before)) if z not in range(4, 8)]
    assert (expected[others] == 2).any(), "there is something to take away"
    expected[others] = np.where(expected[others] == 2, 0, expected[others])
    assert (found == expected).all()


def test_a_completion_does_not_go_on_with_another_model(model, preprocessed_phantom, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(complete, "complete_batch", interrupted)
        assert run_complete(model) == 130
    os.utime(model / "fold_0" / "checkpoint_final.pth", (0, 0))
    assert run_complete(model) == 2
    assert "was begun with other settings (trained weights)" in capsys.readouterr().err


def test_an_interrupted_completion_goes_on_where_it_stopped(model, preprocessed_phantom, monkeypatch, capsys):
    monkeypatch.setattr(complete, "AT_ONCE", 1)
    predicted: list[str] = []
    batch = complete.complete_batch

    def interrupted(completion, predictor, jobs, folder):
        if len(predicted) == 4:
            raise KeyboardInterrupt
        predicted.extend(job.case for job in jobs)
        batch(completion, predictor, jobs, folder)

    with monkeypatch.context() as patched:
        patched.setattr(complete, "complete_batch", interrupted)
        assert run_complete(model) == 130
    raw = preprocessed_phantom / "nnUNet_raw"
    assert not (raw / TARGET).exists()
    assert run_complete(model, "--uncertain", "0.1") == 2
    assert "uncertain" in capsys.readouterr().err
    later: list[str] = []

    def counted(completion, predictor, jobs, folder):
        later.extend(job.case for job in jobs)
        batch(completion, predictor, jobs, folder)

    monkeypatch.setattr(complete, "complete_batch", counted)
    assert run_complete(model) == 0
    assert sorted(predicted + later) == raw_table(preprocessed_phantom).cases
    assert len(later) == 5
    assert run_complete(model) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_what_cannot_be_completed_is_refused(model, preprocessed_phantom, capsys):
    assert run_complete(model, "--uncertain", "0.7") == 2
    assert run_complete(model, "-chk", "checkpoint_best.pth") == 2
    assert run_complete(model, "-f", "3") == 2
    assert "fold 3" in capsys.readouterr().err
    file = preprocessed_phantom / "nnUNet_raw" / PHANTOM / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "sources"}))
    assert run_complete(model) == 2
    assert "nothing is missing" in capsys.readouterr().err
    labels = {**content["labels"], "kidney": 5}
    file.write_text(json.dumps({**content, "labels": labels}))
    assert run_complete(model) == 2
    assert "other labels" in capsys.readouterr().err
    file.write_text(json.dumps(content))
    trained = json.loads((model / "dataset.json").read_text())
    swapped = {**trained["labels"], "liver": trained["labels"]["spleen"], "spleen": trained["labels"]["liver"]}
    for other, text in ((file, content), (model / "dataset.json", trained)):
        other.write_text(json.dumps({**text, "labels": swapped}))
    assert run_complete(model) == 2
    message = capsys.readouterr().err
    assert (
        "expected the labels that the model was trained for, in their order.\n  trained: ['liver', 'spleen'" in message
    )
