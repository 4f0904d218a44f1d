"""A splits_final.json is read with all that can be wrong in it; patients are never taken apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.patients import repeats
from nnunetv2_conemos.datasets.splits import only_training, read_splits, require_same_splits, stratified_split
from nnunetv2_conemos.errors import InputError, SourceError

LABELS = {"background": 0, "liver": 1, "spleen": 2}
CASES = ("liver_001", "liver_002", "p1_t0", "p1_t1", "Müller")


def table_of(patients: dict[str, str] | None = None, cases: tuple[str, ...] = CASES) -> SourceTable:
    source = {"cases": ["*"], "annotated": ["liver"], "patient": patients or {}}
    return SourceTable.from_dataset_json({"labels": LABELS, "sources": {"all": source}}, cases)


def refused(tmp_path: Path, content: object, table: SourceTable) -> str:
    file = tmp_path / "splits_final.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(SourceError) as caught:
        read_splits(file, table)
    assert str(file) in str(caught.value)
    return str(caught.value)


def fold(train: object, val: object = ("p1_t0",)) -> list[dict[str, object]]:
    return [{"train": train, "val": val}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (fold(["liver_001.nii.gz"]), "fold 0, 'train': not a case of this dataset: 'liver_001.nii.gz' (Did you mean"),
        (fold(["liver_002_0000"]), "'liver_002_0000' (Did you mean 'liver_002'?)"),
        (fold(["x/liver_002_0000.nii.gz"]), "(Did you mean 'liver_002'?)"),
        (fold(["Liver_001"]), "'Liver_001' (Did you mean 'liver_001'?)"),
        (fold(["Mu\u0308ller"]), "(Did you mean 'Müller'?)"),
        (fold(["a", "b", "c", "d"]), " and 1 more."),
        (fold(["p1_t1"], ["lvier_002"]), "fold 0, 'val': not a case of this dataset: 'lvier_002' (Did you mean"),
        ([{"train": ["p1_t0"], "test": ["p1_t1"]}], "expected an object with 'train' and 'val', found an object"),
        ({"0": fold(["p1_t1"])[0]}, "expected a list of folds, found an object with the keys '0'"),
        ([], "expected a list of folds, found an empty list"),
        ("null", "expected a list of folds, found null"),
        ([["p1_t0"]], 'fold 0: expected an object with \'train\' and \'val\', found a list (["p1_t0"])'),
        (fold(["p1_t1", "liver_001", "p1_t1"]), "fold 0, 'train': named more than once: 'p1_t1'"),
        (fold(["p1_t0", "p1_t1"]), "fold 0: in 'train' and in 'val': 'p1_t0'"),
        (fold([]), "fold 0, 'train': expected a list of at least one case, found an empty list"),
        (fold(["p1_t1"], []), "fold 0, 'val': expected a list of at least one case"),
        (fold("p1_t1"), "fold 0, 'train': expected a list of at least one case, found \"p1_t1\""),
        (fold([1]), "fold 0, 'train': expected names of cases, found 1"),
        (fold(["p1_t1"]) + fold(["p1_t1"], ["p1"]), "fold 1, 'val': not a case of this dataset: 'p1'"),
        ('[{"train": ["p1_t1"], "train": ["liver_001"], "val": ["p1_t0"]}]', "'train' named more than once in one"),
        ("[{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_fold_part_and_nearest_case(tmp_path: Path, content: object, message: str):
    assert message in refused(tmp_path, content, table_of())


def test_a_patient_that_trains_and_validates_is_named(tmp_path: Path):
    folds = fold(["liver_001", "p1_t1"], ["p1_t0"])
    wrong = "fold 0: 1 patient(s) in 'train' and in 'val': 'p1' (p1_t1 trains, p1_t0 validates)."
    assert wrong in refused(tmp_path, folds, table_of({"p1_*": "p1"}))
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    assert read_splits(tmp_path / "splits_final.json", table_of()) == folds


def test_further_keys_and_folds_are_nobodys_mistake(tmp_path: Path):
    ours, theirs = tmp_path / "raw.json", tmp_path / "preprocessed.json"
    ours.write_text(json.dumps([{"train": ["liver_001", "p1_t1"], "val": ["p1_t0"], "test": ["Müller"]}]))
    theirs.write_text(json.dumps([*fold(["p1_t1", "liver_001"]), *fold(["liver_002"])]))
    require_same_splits(ours, theirs, table_of())
    with pytest.raises(SourceError, match="fold 1 of"):
        require_same_splits(theirs, ours, table_of())


@given(
    owners=st.lists(
        st.tuples(st.integers(0, 7), st.sets(st.sampled_from(["liver", "spleen"]))), min_size=4, max_size=30
    ),
    folds=st.integers(2, 5),
)
def test_a_split_never_takes_a_patient_apart(owners: list[tuple[int, set[str]]], folds: int):
    sources = {
        f"s{n}": {"cases": [f"c{n}"], "annotated": sorted(labels), "patient": f"p{owner}"}
        for n, (owner, labels) in enumerate(owners)
    }
    if not any(labels for _, labels in owners):
        return
    table = SourceTable.from_dataset_json({"labels": LABELS, "sources": sources}, [f"c{n}" for n in range(len(owners))])
    patients = {owner for owner, labels in owners if labels}
    if len(patients) < folds:
        with pytest.raises(InputError, match=rf"of {len(patients)} patients, each in one fold, cannot be split"):
            stratified_split(table, folds)
        return
    made = stratified_split(table, folds)
    annotated = sorted(case for case in table.cases if table.known(case).any())
    assert sorted(case for fold in made for case in fold["val"]) == annotated
    for fold in made:
        trained, validated = ({table.patient_of(case) for case in fold[part]} for part in ("train", "val"))
        assert validated
        assert not trained & validated
        left_out = set(table.cases) - {*fold["train"], *fold["val"]}
        assert {table.patient_of(case) for case in left_out} <= validated


def test_unlabelled_cases_of_a_patient_that_validates_do_not_train():
    patients = {"a": "p", "b": "p", "c": "q"}
    train, val, moved, left_out = only_training(
        {"train": ["d"], "val": ["a", "b", "c"]}, lambda case: case == "a", lambda case: patients.get(case, case)
    )
    assert (train, val, moved, left_out) == (["d", "c"], ["a"], ["c"], ["b"])


@pytest.mark.parametrize(
    "cases",
    [
        ["p1_t0", "p1_t1"], ["ACDC_patient001_frame01", "ACDC_patient001_frame12"], ["x_pre", "x_post"],
        ["sub-01_ses-1", "sub-01_ses-2"], ["GLI-00001-000", "GLI-00001-001"], ["p01a", "p01b"], ["p1", "p1_t1"],
        ["p1_20190105", "p1_20200601"], ["t0_p1", "t1_p1"], ["001_L", "001_R"], ["Case00_ED", "Case00_ES"],
    ],
)  # fmt: skip
def test_names_that_look_like_one_patient(cases: list[str]):
    others = ["p2_t0", "GLI-00002-000", "GLI-00002-001", "anything"]
    assert sorted(cases) in [sorted(group) for group in repeats([*cases, *others])]


@pytest.mark.parametrize(
    "form", ["hippocampus_{:03d}", "case_{:04d}", "BraTS20_{:03d}", "s{:04d}", "abdomen_scan_{}", "ct_{}", "{}"]
)
def test_numbers_of_cases_look_like_nothing(form: str):
    assert not repeats(form.format(number) for number in range(40))


def test_a_patient_is_declared_by_glob_or_for_a_whole_source():
    assert table_of({"p1_*": "Ada", "liver_00?": "Ada"}).patients == dict.fromkeys(CASES[:4], "Ada")
    assert table_of("Ada").patient_of("Müller") == "Ada"  # pyright: ignore
    assert table_of().patient_of("p1_t0") == "p1_t0"


@pytest.mark.parametrize(
    ("patient", "message"),
    [
        ({"q*": "Ada"}, r"source 'all', `patient`: 'q\*' matches no case"),
        ({"p1_*": "Ada", "p1_t0": "Bob"}, "case 'p1_t0' is of two patients, 'Ada' and 'Bob'"),
        ({"p1_t0": 7}, "patient.p1_t0: Input should be a valid string .found 7."),
        ({"p1_t0": ""}, "patient.p1_t0: String should have at least 1 character"),
        (["p1"], "source 'all': patient: Input should be a valid dictionary"),
    ],
)
def test_wrong_patients_are_refused(patient: object, message: str):
    with pytest.raises(SourceError, match=message):
        table_of(patient)  # pyright: ignore


def test_folds_are_as_even_as_patients_allow():
    sizes = {"a": 6, "b": 3, "c": 3, "d": 3, "e": 3}
    cases = tuple(f"{patient}{number}" for patient, size in sizes.items() for number in range(size))
    folds = stratified_split(table_of({f"{patient}*": patient for patient in sizes}, cases), 3)
    assert sorted(len(fold["val"]) for fold in folds) == [6, 6, 6]
    assert np.all([len(fold["train"]) == 12 for fold in folds])
