"""The patients that a dataset declares stay together in everything that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from raw_worlds import stripes, write_raw

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.benchmark.cases import BenchmarkCases, own_split, remaining
from nnunetv2_conemos.benchmark.config import Recipe
from nnunetv2_conemos.benchmark.hold_out import apart_from, draw_held_out
from nnunetv2_conemos.datasets.check import check
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.merge import report
from nnunetv2_conemos.datasets.split import split
from nnunetv2_conemos.files import write_json

LABELS = {"background": 0, "liver": 1, "spleen": 2}
CASES = [f"p{patient}_t{time}" for patient in range(6) for time in range(3)]
TARGET = "Dataset100_Result"


@pytest.fixture
def raw(nnunet_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dataset003_Times: six patients at three times each, of which `sources` say nothing."""
    monkeypatch.setattr(report, "draw", lambda *_: Figure((1, 1)))
    folder = nnunet_folders / "nnUNet_raw"
    write_raw(folder / "Dataset003_Times", LABELS, {case: stripes(1, 2) for case in CASES})
    return folder


@pytest.fixture
def declared(raw: Path, tmp_path: Path) -> Path:
    """The same, with patients declared by a table."""
    file = tmp_path / "table.csv"
    file.write_text("case,labels,patient\n" + "".join(f"{case},liver;spleen,{case[:2]}\n" for case in CASES))
    assert cli.main(["declare", "3", "--annotated", str(file)]) == 0
    return raw


def table_of(folder: Path) -> SourceTable:
    return SourceTable.from_dataset_json(read_dataset_json(folder), raw_cases(folder))


def require_apart(folder: Path) -> None:
    """No patient of the folds in a folder trains and validates, and every fold has both."""
    table = table_of(folder)
    for fold in json.loads((folder / "splits_final.json").read_text()):
        train, val = ({table.patient_of(case) for case in fold[part]} for part in ("train", "val"))
        assert train
        assert val
        assert not train & val


def test_a_column_of_a_table_declares_patients_in_one_source(declared: Path):
    (source,) = read_dataset_json(declared / "Dataset003_Times")["sources"].values()
    assert source["patient"] == {case: case[:2] for case in CASES}
    assert not check("3").findings


def test_cases_that_look_like_repeats_are_noted(raw: Path, capsys: pytest.CaptureFixture[str]):
    (finding,) = check("3").findings
    assert finding.severity == "warning"
    assert "18 cases look like several of one patient (p0_t0, p0_t1, p0_t2; p1_t0" in finding.what
    assert cli.main(["merge", "3", "-o", TARGET, "-np", "1"]) == 0
    assert "Times: 18 cases look like several of one patient" in capsys.readouterr().out


def test_an_existing_split_that_takes_a_patient_apart_is_an_error(declared: Path):
    write_json(declared / "Dataset003_Times/splits_final.json", [{"train": CASES[1:], "val": CASES[:1]}])
    (finding,) = check("3").findings
    assert finding.severity == "error"
    assert "fold 0: 1 patient(s) in 'train' and in 'val': 'p0' (p0_t2 trains, p0_t0 validates)" in finding.what


def test_a_merge_keeps_patients_apart_by_dataset_and_together_in_folds(declared: Path, capsys):
    write_raw(declared / "Dataset004_Other", LABELS, {case: stripes(1) for case in CASES[:3]})
    recipe = declared / "recipe.yaml"
    recipe.write_text("datasets: [{dataset: Dataset003_Times}, {dataset: Dataset004_Other, patient: {p0_*: p0}}]\n")
    assert cli.main(["merge", "--recipe", str(recipe), "-o", TARGET, "-np", "1"]) == 0
    assert "look like several of one patient" not in capsys.readouterr().out
    table = table_of(declared / TARGET)
    assert table.patient_of("Times_p0_t0") == "Times_p0"
    assert table.patient_of("Other_p0_t0") == table.patient_of("Other_p0_t2") == "Other_p0"
    require_apart(declared / TARGET)


def test_hidden_labels_leave_patients_as_they_are(declared: Path):
    assert cli.main(["hide", "3", "-o", TARGET, "--per-case", "1", "--unlabelled", "0.3", "-np", "1"]) == 0
    assert table_of(declared / TARGET).patients == {case: case[:2] for case in CASES}
    require_apart(declared / TARGET)


@pytest.mark.parametrize("options", [{}, {"validation": 4}, {"folds": 2}], ids=str)
def test_semi_supervised_folds_keep_patients_together(declared: Path, options: dict):
    made = split("3", TARGET, setting="ssl", labelled=5, **options)
    require_apart(declared / TARGET)
    assert len(made.roles.labelled) == 5
    assert len(made.roles.validation) == options.get("validation", 0)


def test_a_patient_seen_in_two_domains_is_unseen_with_either(declared: Path):
    file = declared / "Dataset003_Times/dataset.json"
    domains = {f"d{t}": {"cases": [f"*_t{t}"], "domain": f"d{t}", "annotated": ["liver", "spleen"]} for t in range(3)}
    sources = {name: {**source, "patient": {"p0*": "p0", "p1*": "p1"}} for name, source in domains.items()}
    write_json(file, read_dataset_json(file.parent) | {"sources": sources})
    made = split("3", TARGET, setting="semidg", labelled=4, test_domains=["d0", "d1"])
    for fold, domain in zip(made.folds, ("d0", "d1"), strict=True):
        used = {case for part in fold.values() for case in part}
        assert not any(case.startswith(("p0", "p1")) or case.endswith(domain[1]) for case in used)
    made = split("3", TARGET, setting="semidg", labelled=2, test_domains=["d0"], overwrite=True)
    assert not any(case.startswith(("p0", "p1")) for case in made.roles.cases)


def test_too_few_patients_are_named(declared: Path, capsys: pytest.CaptureFixture[str]):
    words = ["split", "3", "-o", TARGET, "--setting", "ssl", "-np", "1", "--labelled"]
    assert cli.main([*words, "17", "--validation", "1"]) == 2
    assert "17 annotated cases to stay labelled, of other patients than 1 to validate" in shown(capsys)
    assert cli.main([*words, "9", "--folds", "7"]) == 2
    assert "expected 2 to 6, the patients with labelled cases" in shown(capsys)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_benchmark_holds_out_whole_patients(declared: Path):
    source = declared / "Dataset003_Times"
    dataset_json, table = read_dataset_json(source), table_of(source)
    held_out = draw_held_out(Recipe(dataset="3", hold_out=4), source, table)
    assert len(held_out) == 4
    train = apart_from(held_out, CASES, table)
    assert len(train) == 12, "two patients are held out, one of them in part"
    write_json(source / "splits_final.json", [{"train": train, "val": sorted({*CASES} - {*train})}])
    files = raw_cases(source)
    cases = BenchmarkCases(source, dataset_json, files, table, held_out, train, None)
    kept = {case: files[case] for case in train}
    assert SourceTable.from_dataset_json(remaining(cases, kept), train).patients == {case: case[:2] for case in train}
    (fold,) = own_split(cases, train) or []
    assert {case[:2] for case in fold["val"]} == {train[0][:2]}
    assert sorted(fold["train"] + fold["val"]) == train
