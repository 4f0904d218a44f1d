"""Tables of who annotated what: what they may say, and the sources they become."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import complete_table, group_sources, read_table
from nnunetv2_conemos.errors import InputError, SourceError

LABELS = LabelSpace.from_dataset_json({"labels": {"background": 0, "liver": 1, "spleen": 2, "pancreas": 3}})


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_json_and_both_kinds_of_csv_say_the_same(tmp_path: Path):
    wanted = {"a": ["liver", "spleen"], "b": ["pancreas"], "c": []}
    wide = "case,labels\na,liver;spleen\nb, pancreas\nc,\n"
    long = "case,labels\r\na,liver\r\na,spleen\r\nb,pancreas\r\nc,\r\n"
    assert read_table(write(tmp_path / "t.json", json.dumps(wanted))) == (wanted, {})
    for name, text in (("wide.csv", wide), ("long.CSV", "\ufeff" + long)):
        assert read_table(write(tmp_path / name, text)) == (wanted, {"a": {}, "b": {}, "c": {}})


def test_a_csv_file_may_say_modality_and_domain(tmp_path: Path):
    """Cases that differ in them are sources of their own; an empty field says nothing."""
    rows = "case,domain,labels,modality\na,GE,liver,CT\nb,Philips,liver,CT\nc,GE,liver,CT\nd,,liver,\ne,,,CT\n"
    table = read_table(write(tmp_path / "t.csv", rows))
    sources = group_sources(table.annotated, LABELS, "Dataset001_A", table.traits)
    liver = {"annotated": ["liver"], "dataset": "Dataset001_A"}
    assert sources == {
        "liver, CT, GE": {"cases": ["a", "c"], **liver, "modality": "CT", "domain": "GE"},
        "liver, CT, Philips": {"cases": ["b"], **liver, "modality": "CT", "domain": "Philips"},
        "liver": {"cases": ["d"], **liver},
        "unlabelled, CT": {"cases": ["e"], "annotated": [], "dataset": "Dataset001_A", "modality": "CT"},
    }


def test_json_says_what_the_columns_of_a_csv_file_say(tmp_path: Path):
    rows = "case,labels,patient,modality\na,liver;spleen,p1,CT\nb,,p1,\n"
    entries = {
        "a": {"labels": ["liver", "spleen"], "patient": "p1", "modality": "CT"},
        "b": {"labels": [], "patient": "p1"},
    }
    table = read_table(write(tmp_path / "t.json", json.dumps(entries)))
    assert table == read_table(write(tmp_path / "t.csv", rows))


def test_tables_of_excel_are_read_whatever_separates_their_fields(tmp_path: Path):
    """In many countries Excel separates by ';'; its Unicode text is in UTF-16 and separated by tabs."""
    wanted = {"a": ["liver", "Harnröhre"], "b": ["liver"], "c": []}
    (tmp_path / "t.csv").write_text('case;labels\r\na;"liver;Harnröhre"\r\nb;liver\r\nc;\r\n', encoding="utf-8-sig")
    assert read_table(tmp_path / "t.csv").annotated == wanted
    (tmp_path / "t.csv").write_text("case\tlabels\na\tliver;Harnröhre\nb\tliver\nc\t\n", encoding="utf-16")
    assert read_table(tmp_path / "t.csv").annotated == wanted


def test_labels_may_hold_commas_and_semicolons(tmp_path: Path):
    wanted = {"a": ["kidney, left", "x;y"], "b": ["x", "y"]}
    text = 'case,labels\na,"kidney, left;""x;y"""\nb,x;y\n'
    assert read_table(write(tmp_path / "t.csv", text)).annotated == wanted
    assert read_table(write(tmp_path / "t.json", json.dumps(wanted))).annotated == wanted


@pytest.mark.parametrize("case", ["", "..", ".", "../x", "/x", "a\\b", "a\0b", "a\nb", "._a", "a" * 300, " "])
def test_cases_that_cannot_be_names_of_files_are_refused(tmp_path: Path, case: str):
    with pytest.raises(InputError, match=r"t\.json: expected case ids that can be the names of files, found"):
        read_table(write(tmp_path / "t.json", json.dumps({case: ["liver"], "b": []})))


def test_a_table_in_another_encoding_says_how_to_save_it(tmp_path: Path):
    (tmp_path / "t.csv").write_bytes("case,labels\na,Harnröhre\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"t\.csv: expected text in UTF-8.* line 2\. Save it as UTF-8 .*CSV UTF-8"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.json", "{", "not valid JSON"),
        ("t.json", "[1]", "an object case -> labels, found list"),
        ("t.json", '{"a": "liver"}', "case 'a': expected a list of label names, .* found 'liver'"),
        (
            "t.json",
            '{"a": {"labels": ["liver"], "age": "9"}}',
            "case 'a': .* names, or an object of",
        ),
        ("t.json", '{"a": {"patient": "9"}}', "case 'a': .* names, or an object of"),
        ("t.json", '{"a": {"labels": [], "patient": 9}}', "case 'a': .* names, or an object of"),
        ("t.json", '{"a": ["liver"], "b": [], "a": []}', "'a' named more than once"),
        ("t.json", "{}", "expected at least one case, found none"),
        ("t.csv", "", "expected the header 'case,labels', .*found ''"),
        ("t.csv", "id,labels\na,b\n", "expected the header 'case,labels'"),
        ("t.csv", "case,labels\na,liver\nb,liver,spleen\n", "line 3: expected 2 fields"),
        ("t.csv", "case,labels\na\n", "line 2: expected 2 fields"),
        ("t.csv", "case;labels\na;liver;spleen\n", "line 2: expected 2 fields.*in quotes"),
        ("t.csv", "case,labels\na," + "x" * 140_000, "line 2: not valid CSV .field larger than field limit"),
        ("t.csv", 'case,labels\na,"liver\nb,spleen\n', "line 3: not valid CSV"),
        ("t.csv", "case,labels\n,liver\n", "line 2: expected 2 fields"),
        ("t.csv", "case,labels,scanner\na,liver,A\n", "optionally with the columns modality, domain, patient"),
        ("t.csv", "case,labels,labels\na,liver,spleen\n", "expected the header"),
        ("t.csv", "case,labels,domain\na,liver\n", "line 2: expected 3 fields, case, labels, domain"),
        ("t.csv", "case,labels,domain\na,liver,A\na,spleen,B\n", "line 3: expected {'domain': 'A'} for case 'a'"),
        ("t.xlsx", "", "expected a .json or .csv file, found '.xlsx'"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / name, text))


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
    with pytest.raises(SourceError, match=r"case 'a': 'Spleen' is not a label .*Did you mean 'spleen'\?"):
        group_sources({"a": ["Spleen"]}, LABELS)


def test_strangers_and_missing_cases_are_listed_together():
    with pytest.raises(SourceError, match=r"1 case\(s\) of the table .*: x\. .*2 case\(s\) of the dataset .*: b, c\."):
        complete_table({"a": ["liver"], "x": []}, ["a", "b", "c"], None)
    assert complete_table({"a": ["liver"]}, ["a", "b"], []) == {"a": ["liver"], "b": []}
    with pytest.raises(SourceError, match="not in the dataset: x"):
        complete_table({"x": []}, ["a"], [])
