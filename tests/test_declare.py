"""`conemos declare`: tables in, sources out, both copies of dataset.json or none."""

from __future__ import annotations

import io
import json
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from rich.console import Console

from nnunetv2_conemos import cli, datasets
from nnunetv2_conemos.declare import (
    complete_table,
    declare,
    group_sources,
    read_annotated,
    source_table,
    write_together,
)
from nnunetv2_conemos.sources import LabelSpace, SourceError, SourceTable

LABELS = LabelSpace.from_dataset_json({"labels": {"background": 0, "liver": 1, "spleen": 2, "pancreas": 3}})
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
NAME = "Dataset901_Phantom"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def table_of(phantom: Path, tmp_path: Path) -> Path:
    """The phantom without `sources`, and its table in a JSON file."""
    dataset_json = datasets.read_dataset_json(phantom)
    table = SourceTable.from_dataset_json(dataset_json, datasets.raw_cases(phantom))
    datasets.write_json(phantom / "dataset.json", {k: v for k, v in dataset_json.items() if k != "sources"})
    return write(tmp_path / "table.json", json.dumps({case: table.annotated(case) for case in table.cases}))


def test_json_and_both_kinds_of_csv_say_the_same(tmp_path: Path):
    wanted = {"a": ["liver", "spleen"], "b": ["pancreas"], "c": []}
    wide = "case,labels\na,liver;spleen\nb, pancreas\nc,\n"
    long = "case,labels\r\na,liver\r\na,spleen\r\nb,pancreas\r\nc,\r\n"
    assert read_annotated(write(tmp_path / "t.json", json.dumps(wanted))) == wanted
    assert read_annotated(write(tmp_path / "wide.csv", wide)) == wanted
    assert read_annotated(write(tmp_path / "long.CSV", "\ufeff" + long)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", "{", "not valid JSON"),
        ("t.json", "[1]", "expected an object case -> labels, found list"),
        ("t.json", '{"a": "liver"}', "case 'a': expected a list of label names, found 'liver'"),
        ("t.json", '{"a": ["liver"], "b": [], "a": []}', "named more than once: a"),
        ("t.json", "{}", "names no case"),
        ("t.csv", "", "expected the header 'case,labels', found None"),
        ("t.csv", "id,labels\na,b\n", "expected the header 'case,labels'"),
        ("t.csv", "case,labels\na,liver\nb,liver,spleen\n", "line 3: expected two fields"),
        ("t.csv", "case,labels\na\n", "line 2: expected two fields"),
        ("t.csv", "case,labels\n,liver\n", "line 2: expected two fields"),
        ("t.xlsx", "", "expected a .json or .csv file, found '.xlsx'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_annotated(write(tmp_path / name, text))


def test_cases_annotated_alike_become_one_source_in_label_order():
    annotated = {"a": ["spleen", "liver"], "b": ["liver", "spleen"], "c": [], "d": ["spleen"], "e": [*LABELS.names]}
    sources = group_sources(annotated, LABELS)
    assert sources["all but pancreas"] == {"cases": ["a", "b"], "annotated": ["liver", "spleen"]}
    assert {name: source["cases"] for name, source in sources.items()} == {
        "all but pancreas": ["a", "b"],
        "unlabelled": ["c"],
        "spleen": ["d"],
        "all labels": ["e"],
    }


def test_names_that_are_long_or_taken_become_numbers():
    labels = LabelSpace(("a + b", "a", "b", "c", "d", "x" * 60), ((1,), (2,), (3,), (4,), (5,), (6,)), False, None)
    sources = group_sources({"1": ["a + b"], "2": ["a", "b"], "3": ["x" * 60]}, labels)
    assert len(sources) == 3
    assert sum(name.startswith("group ") for name in sources) == 2


@pytest.mark.parametrize("case", ["scan[1]", "what?", "star*", "[!x]", "plain"])
def test_case_names_are_matched_to_the_letter(case: str):
    (pattern,) = group_sources({case: ["liver"]}, LABELS)["liver"]["cases"]
    assert fnmatchcase(case, pattern)
    assert not any(fnmatchcase(other, pattern) for other in ("scan1", "whatx", "starry", "y", "plain2"))


@given(st.dictionaries(st.text(min_size=1, max_size=6), st.lists(st.sampled_from(LABELS.names)), min_size=1))
def test_sources_say_what_the_table_said(annotated: dict[str, list[str]]):
    """Whatever the cases are called: each is in one source, which annotates exactly its labels."""
    assume(any(annotated.values()))
    labels = {"background": 0} | {name: i for i, name in enumerate(LABELS.names, start=1)}
    table = SourceTable.from_dataset_json({"labels": labels, "sources": group_sources(annotated, LABELS)}, annotated)
    assert {case: set(table.annotated(case)) for case in table.cases} == {c: set(v) for c, v in annotated.items()}


def test_an_unknown_label_is_answered_with_the_nearest():
    with pytest.raises(SourceError, match=r"case 'a': 'Spleen' is no label .*Did you mean 'spleen'\?"):
        group_sources({"a": ["Spleen"]}, LABELS)


def test_strangers_and_missing_cases_are_listed_together():
    with pytest.raises(SourceError, match=r"1 case\(s\) of the table .*: x\. .*2 case\(s\) of the dataset .*: b, c\."):
        complete_table({"a": ["liver"], "x": []}, ["a", "b", "c"], None)
    assert complete_table({"a": ["liver"]}, ["a", "b"], []) == {"a": ["liver"], "b": []}
    with pytest.raises(SourceError, match="not in the dataset: x"):
        complete_table({"x": []}, ["a"], [])


def test_the_command_writes_both_copies_and_prints_the_table(
    table_of: Path, phantom: Path, nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
):
    copy = nnunet_folders / "nnUNet_preprocessed" / NAME
    copy.mkdir()
    datasets.write_json(copy / "dataset.json", datasets.read_dataset_json(phantom) | {"only": "here"})
    assert cli.main(["declare", "901", "--annotated", str(table_of)]) == 0
    ours, theirs = datasets.read_dataset_json(phantom), datasets.read_dataset_json(copy)
    assert ours["sources"] == theirs["sources"]
    assert set(ours["sources"]) == {"liver", "stomach", "spleen + gallbladder"}
    assert theirs["only"] == "here"
    datasets.refuse_different_tables(NAME)
    printed = capsys.readouterr().out
    assert "gallbladder" in printed
    assert str(copy / "dataset.json") in printed
    assert "no label map" not in printed


def printed_table(
    annotated: dict[str, list[str]], occurs: np.ndarray | None = None, domains: dict[str, str] | None = None
) -> str:
    labels = {"background": 0} | {name: i for i, name in enumerate(LABELS.names, start=1)}
    sources = group_sources(annotated, LABELS)
    for source, domain in (domains or {}).items():
        sources[source]["domain"] = domain
    table = SourceTable.from_dataset_json({"labels": labels, "sources": sources}, annotated)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(source_table(table, occurs))
    return console.export_text()


def test_the_table_has_labels_as_rows_and_counts_where_they_occur():
    printed = printed_table({"a": ["liver"], "b": ["liver"], "c": ["spleen"]}, np.array([[1, 0, 0], [0, 1, 0]]))
    assert "│ liver    │       1/2 │          - │ 1/2 │" in printed
    assert "│ spleen   │         - │          1 │   1 │" in printed
    assert "│ pancreas │         - │          - │   - │" in printed


def test_many_sources_become_rows_and_labels_numbers():
    liver, spleen, pancreas = LABELS.names
    sets = [[liver], [spleen], [pancreas], [liver, spleen], []]
    printed = printed_table({str(case): names for case, names in enumerate(sets)})
    assert "│ all but pancreas (1) │ 1 │ 1 │ - │" in printed
    assert "│ all                  │ 2 │ 2 │ 1 │" in printed
    assert "labels: 1 liver, 2 spleen, 3 pancreas" in " ".join(printed.split())


def test_domains_are_shown_where_there_are_some():
    annotated = {"a": ["liver"], "b": ["spleen"]}
    assert "domain" not in printed_table(annotated)
    printed = printed_table(annotated, domains={"liver": "[Lyon]"})
    assert "│ domain   │    [Lyon] │          - │     │" in printed
    assert "│ liver    │         1 │          - │   1 │" in printed


def test_domains_of_many_sources_are_a_column():
    sets = [["liver"], ["spleen"], ["pancreas"], ["liver", "spleen"], []]
    annotated = {str(case): names for case, names in enumerate(sets)}
    printed = printed_table(annotated, domains={"all but pancreas": "Lyon"})
    assert "│ all but pancreas (1) │   Lyon │ 1 │ 1 │ - │" in printed
    assert "│ all                  │        │ 2 │ 2 │ 1 │" in printed
    assert "labels: 1 liver, 2 spleen, 3 pancreas" in " ".join(printed.split())


def test_missing_label_maps_are_said(table_of: Path, phantom: Path, capsys: pytest.CaptureFixture[str]):
    (phantom / "labelsTr" / "site_a_00.nii.gz").unlink()
    assert cli.main(["declare", NAME, "--annotated", str(table_of)]) == 0
    assert "1 case(s) have no label map: site_a_00. nnU-Net needs one" in capsys.readouterr().out


def test_other_sources_stay_without_overwrite(phantom: Path, nnunet_folders: Path):
    before = (phantom / "dataset.json").read_text()
    table = {case: ["liver"] for case in datasets.raw_cases(phantom)}
    with pytest.raises(SourceError, match=r"already has other `sources`\. Say --overwrite"):
        declare(NAME, table)
    assert (phantom / "dataset.json").read_text() == before
    source_table, files = declare(NAME, table, overwrite=True)
    assert files == [phantom / "dataset.json"]
    assert list(source_table.sources) == ["liver"]
    declare(NAME, table)  # the same again changes nothing and needs no flag


def test_missing_cases_can_be_unlabelled_or_complete(phantom: Path):
    table, _ = declare(NAME, {"site_a_00": ["liver"]}, missing="unlabelled", overwrite=True)
    assert table.annotated("site_b_01") == ()
    table, _ = declare(NAME, {"site_a_00": ["liver"]}, missing="all", overwrite=True)
    assert table.annotated("site_b_01") == table.labels.names


def test_nothing_annotated_at_all_is_refused_and_nothing_written(phantom: Path):
    before = (phantom / "dataset.json").read_text()
    with pytest.raises(SourceError, match="no source annotates any label"):
        declare(NAME, {"site_a_00": []}, missing="unlabelled", overwrite=True)
    assert (phantom / "dataset.json").read_text() == before


def test_regions_are_declared_by_name(phantom: Path):
    datasets.write_json(phantom / "dataset.json", datasets.read_dataset_json(phantom) | REGIONS)
    table, _ = declare(NAME, {"site_a_00": ["whole", "core"]}, missing="unlabelled", overwrite=True)
    assert table.annotated("site_a_00") == ("whole", "core")


def test_a_copy_with_other_labels_is_refused_and_nothing_written(phantom: Path, nnunet_folders: Path):
    copy = nnunet_folders / "nnUNet_preprocessed" / NAME
    copy.mkdir()
    datasets.write_json(copy / "dataset.json", datasets.read_dataset_json(phantom) | {"labels": {"background": 0}})
    before = (phantom / "dataset.json").read_text()
    with pytest.raises(SourceError, match=r"`labels` differs .*Plan and preprocess"):
        declare(NAME, {"site_a_00": ["liver"]}, missing="unlabelled", overwrite=True)
    assert (phantom / "dataset.json").read_text() == before


def test_a_failure_in_between_restores_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = (write(tmp_path / name, '{"old": 1}') for name in ("first.json", "second.json"))
    real = datasets.write_json

    def full_disk(path: Path, content: object) -> None:
        if path == second:
            raise OSError("No space left on device")
        real(path, content)

    monkeypatch.setattr(datasets, "write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_together({first: {"new": 1}, second: {"new": 1}})
    assert json.loads(first.read_text()) == json.loads(second.read_text()) == {"old": 1}


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("902", "Could not find a dataset with the ID 902"), ("Dataset902_Other", "there is no Dataset902_Other")],
)
def test_an_unknown_dataset_is_bad_input(
    table_of: Path, capsys: pytest.CaptureFixture[str], dataset: str, message: str
):
    assert cli.main(["declare", dataset, "--annotated", str(table_of)]) == 2
    assert message in capsys.readouterr().err
