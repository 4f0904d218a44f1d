"""A partially labelled copy of a complete dataset."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from raw_worlds import read_nifti, stripes, write_raw

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.hide import hide

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}
TARGET = "Dataset100_Hidden"


@pytest.fixture
def raw(nnunet_folders) -> Path:
    folder = nnunet_folders / "nnUNet_raw"
    write_raw(folder / "Dataset003_Complete", LABELS, {f"c{i}": stripes(1, 2, 3) for i in range(9)})
    return folder


def run(*words: str) -> int:
    return cli.main(["hide", *words, "-o", TARGET, "-np", "1"])


def table(raw: Path) -> SourceTable:
    return SourceTable.from_dataset_json(
        json.loads((raw / TARGET / "dataset.json").read_text()), raw_cases(raw / TARGET)
    )


def refuse_leaks(raw: Path) -> None:
    """Every map holds its annotated labels and no other; the complete maps are beside it."""
    known = table(raw)
    for case in known.cases:
        values = set(np.unique(read_nifti(raw / TARGET / "labelsTr" / f"{case}.nii.gz")))
        assert values == {0} | {LABELS[name] for name in known.annotated(case)}
        complete = read_nifti(raw / TARGET / "labelsTr_complete" / f"{case}.nii.gz")
        assert (complete == stripes(1, 2, 3)).all()


def test_each_case_keeps_one_label_and_each_label_is_kept_equally_often(raw):
    assert run("3", "--per-case", "1") == 0
    refuse_leaks(raw)
    assert table(raw).counts().sum(0).tolist() == [3, 3, 3]
    assert len(json.loads((raw / TARGET / "splits_final.json").read_text())) == 5


def test_groups_are_dealt_evenly(raw, tmp_path):
    (tmp_path / "groups.json").write_text(json.dumps({"site a": ["liver"], "site b": ["spleen", "kidney"], "c": []}))
    assert run("3", "--groups", str(tmp_path / "groups.json"), "--images", "copy") == 0
    refuse_leaks(raw)
    assert table(raw).counts().sum(0).tolist() == [3, 3, 3]
    assert sum(not table(raw).known(case).any() for case in table(raw).cases) == 3
    assert len(list((raw / TARGET / "imagesTr").iterdir())) == 9


def test_python_hides_as_the_command_does(raw, tmp_path):
    (tmp_path / "groups.json").write_text(json.dumps({"a": ["liver"], "b": ["spleen"]}))
    assert run("3", "--groups", str(tmp_path / "groups.json"), "--unlabelled", "0.34", "--seed", "2") == 0
    report = hide(
        3, raw / "Dataset101_Hidden", groups={"a": ["liver"], "b": ["spleen"]}, unlabelled=0.34, seed=2, processes=1
    )
    assert report.folder == raw / "Dataset101_Hidden"
    assert {case: report.table.annotated(case) for case in report.table.cases} == {
        case: table(raw).annotated(case) for case in table(raw).cases
    }
    assert report.notes[-1] == "annotated in no case: kidney."
    with pytest.raises(ValueError, match="expected one of --per-case, --groups and --fraction, found several"):
        hide(3, "Dataset102_Hidden", per_case=1, fraction=0.5)


def test_a_fraction_of_each_label_and_unlabelled_cases(raw):
    assert run("3", "--fraction", "0.5", "--unlabelled", "0.34") == 0
    refuse_leaks(raw)
    counts = table(raw).counts().sum(0)
    assert counts.tolist() == [3, 3, 3], "half of the six cases that are not unlabelled"
    assert sum(not table(raw).known(case).any() for case in table(raw).cases) >= 3


def test_the_seed_decides(raw):
    def annotated(seed: str) -> dict:
        assert run("3", "--per-case", "1", "--seed", seed, "--overwrite") == 0
        return {case: table(raw).annotated(case) for case in table(raw).cases}

    assert annotated("1") == annotated("1")
    assert annotated("1") != annotated("2")


def test_a_hidden_subregion_looks_like_the_region_around_it(raw):
    nested = {"background": 0, "whole": [1, 2], "core": 2}
    write_raw(raw / "Dataset004_Nested", nested, {f"c{i}": stripes(1, 2) for i in range(4)})
    assert run("4", "--per-case", "1") == 0
    known = table(raw)
    for case in known.cases:
        found = read_nifti(raw / TARGET / "labelsTr" / f"{case}.nii.gz")
        assert (found == (stripes(1, 1) if known.annotated(case) == ("whole",) else stripes(0, 2))).all()


def test_hidden_labels_stay_known_as_tags_of_slices(raw):
    nested = {"background": 0, "whole": [1, 2], "core": 2}
    maps = {f"c{i}": stripes(1, 2) for i in range(6)}
    for number, array in enumerate(maps.values()):
        array[number % 3 :][array[number % 3 :] == 2] = 1  # the core ends where a slice of its own begins
    write_raw(raw / "Dataset004_Nested", nested, maps)
    assert run("4", "--per-case", "1", "--unlabelled", "0.34", "--tags", "z") == 0
    known = table(raw)
    assert known.tag_axis == "z"
    of_source = {source: {n for c in known.cases_of(source) for n in known.tags(c)} for source in known.sources}
    assert of_source == {"whole, tags": {"core"}, "core, tags": {"whole"}, "tags": {"whole", "core"}}
    for number, case in enumerate(maps):
        expected = {"whole": (0, 1, 2), "core": tuple(range(number % 3))}
        assert known.tags(case) == {n: expected[n] for n in expected if n not in known.annotated(case)}
        if not known.known(case).any():
            assert not read_nifti(raw / TARGET / "labelsTr" / f"{case}.nii.gz").any()
    assert len(json.loads((raw / TARGET / "splits_final.json").read_text())) > 1


def test_tags_count_slices_along_the_axis_named(raw):
    assert run("3", "--unlabelled", "1", "--tags", "y") == 0
    known = table(raw)
    assert known.tag_axis == "y"
    assert {case: known.tags(case) for case in known.cases} == {
        case: {"liver": (0,), "spleen": (1,), "kidney": (2,)} for case in known.cases
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["3"], ["--per-case", "--groups"]),
        (["3", "--per-case", "4"], ["1 to 3", "kidney"]),
        (["3", "--fraction", "1.5"], ["0 to 1"]),
        (["3", "--groups", "nowhere.json"], ["nowhere.json"]),
        (["77", "--per-case", "1"], ["77"]),
    ],
)
def test_wrong_requests_are_refused(raw, capsys, arguments, words):
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (raw / TARGET).exists()


def test_partially_labelled_datasets_and_unknown_groups_are_refused(raw, capsys, tmp_path):
    assert run("3", "--per-case", "1") == 0
    assert cli.main(["hide", "100", "-o", "Dataset101_Twice", "--per-case", "1"]) == 2
    assert "already" in capsys.readouterr().err
    (tmp_path / "groups.json").write_text(json.dumps({"a": ["livr"]}))
    assert run("3", "--groups", str(tmp_path / "groups.json"), "--overwrite") == 2
    assert "Did you mean 'liver'?" in capsys.readouterr().err


def test_a_complete_dataset_keeps_what_its_sources_say(raw):
    file = raw / "Dataset003_Complete" / "dataset.json"
    every = ["liver", "spleen", "kidney"]
    sources = {
        "scanner": {"cases": ["c[0-5]"], "annotated": every, "modality": "CT", "weight": 2, "dataset": "ours"},
        "theirs": {"cases": ["c[6-8]"], "annotated": every, "modality": "MR", "domain": "Lyon"},
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sources": sources}))
    assert run("3", "--per-case", "1") == 0
    hidden = table(raw)
    assert hidden.counts().sum(0).tolist() == [3, 3, 3]
    for case in hidden.cases:
        ours = case < "c6"
        source = hidden.sources[hidden.source_of(case)]
        assert (source.modality, source.weight, source.domain) == (("CT", 2, None) if ours else ("MR", 1, "Lyon"))
        assert hidden.dataset_of(case) == ("ours" if ours else "theirs")
        assert hidden.source_of(case).startswith("scanner: " if ours else "theirs: ")
