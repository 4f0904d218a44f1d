"""`conemos declare`: tables in, sources out, both copies of dataset.json or none."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nnunetv2_conemos import cli, files
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.overview import source_table
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import group_sources
from nnunetv2_conemos.datasets import folders as datasets
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.declare import declare
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.files import json_writer, write_together

LABELS = LabelSpace.from_dataset_json({"labels": {"background": 0, "liver": 1, "spleen": 2, "pancreas": 3}})
REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
NAME = "Dataset901_Phantom"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def table_of(phantom: Path, tmp_path: Path) -> Path:
    """The phantom without `sources`, and its table in a JSON file."""
    dataset_json = read_dataset_json(phantom)
    table = SourceTable.from_dataset_json(dataset_json, datasets.raw_cases(phantom))
    files.write_json(phantom / "dataset.json", {k: v for k, v in dataset_json.items() if k != "sources"})
    return write(tmp_path / "table.json", json.dumps({case: table.annotated(case) for case in table.cases}))


def test_the_command_writes_both_copies_and_prints_the_table(
    table_of: Path, phantom: Path, nnunet_folders: Path, capsys: pytest.CaptureFixture[str]
):
    copy = nnunet_folders / "nnUNet_preprocessed" / NAME
    copy.mkdir()
    files.write_json(copy / "dataset.json", read_dataset_json(phantom) | {"only": "here"})
    assert cli.main(["declare", "901", "--annotated", str(table_of)]) == 0
    ours, theirs = read_dataset_json(phantom), read_dataset_json(copy)
    assert ours["sources"] == theirs["sources"]
    assert set(ours["sources"]) == {"liver", "stomach", "spleen + gallbladder"}
    assert theirs["only"] == "here"
    datasets.require_same_tables(NAME)
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
    with pytest.raises(SourceError, match=r"already has other `sources`\. Pass --overwrite"):
        declare(NAME, table)
    assert (phantom / "dataset.json").read_text() == before
    source_table, files, _ = declare(NAME, table, overwrite=True)
    assert files == [phantom / "dataset.json"]
    assert list(source_table.sources) == ["liver"]
    declare(NAME, table)  # the same again changes nothing and needs no flag


def test_modality_and_domain_of_a_table_reach_both_copies(phantom: Path, nnunet_folders: Path):
    cases = sorted(datasets.raw_cases(phantom))
    rows = "".join(f"{case},liver,MR,{case[:6]}\n" for case in cases)
    table = write(nnunet_folders / "table.csv", "case,labels,modality,domain\n" + rows)
    cli.main(["declare", NAME, "--annotated", str(table), "--overwrite"])
    written = SourceTable.from_dataset_json(read_dataset_json(phantom), cases)
    assert {case: written.domain_of(case) for case in cases} == {case: case[:6] for case in cases}
    assert {source.modality for source in written.sources.values()} == {"MR"}


def test_python_reads_the_table_from_a_file_too(phantom: Path, table_of: Path):
    table, files, without_map = declare(901, table_of)
    assert files == [phantom / "dataset.json"]
    assert without_map == []
    assert read_dataset_json(phantom)["sources"].keys() == table.sources.keys()


def test_missing_cases_can_be_unlabelled_or_complete(phantom: Path):
    table, *_ = declare(NAME, {"site_a_00": ["liver"]}, missing="unlabelled", overwrite=True)
    assert table.annotated("site_b_01") == ()
    table, *_ = declare(NAME, {"site_a_00": ["liver"]}, missing="all", overwrite=True)
    assert table.annotated("site_b_01") == table.labels.names


def test_nothing_annotated_at_all_is_refused_and_nothing_written(phantom: Path):
    before = (phantom / "dataset.json").read_text()
    with pytest.raises(SourceError, match="no source annotates any label"):
        declare(NAME, {"site_a_00": []}, missing="unlabelled", overwrite=True)
    assert (phantom / "dataset.json").read_text() == before


def test_regions_are_declared_by_name(phantom: Path):
    files.write_json(phantom / "dataset.json", read_dataset_json(phantom) | REGIONS)
    table, *_ = declare(NAME, {"site_a_00": ["whole", "core"]}, missing="unlabelled", overwrite=True)
    assert table.annotated("site_a_00") == ("whole", "core")


def test_a_copy_with_other_labels_is_refused_and_nothing_written(phantom: Path, nnunet_folders: Path):
    copy = nnunet_folders / "nnUNet_preprocessed" / NAME
    copy.mkdir()
    files.write_json(copy / "dataset.json", read_dataset_json(phantom) | {"labels": {"background": 0}})
    before = (phantom / "dataset.json").read_text()
    with pytest.raises(SourceError, match=r"`labels` differs .*Plan and preprocess"):
        declare(NAME, {"site_a_00": ["liver"]}, missing="unlabelled", overwrite=True)
    assert (phantom / "dataset.json").read_text() == before


def test_a_failure_in_between_restores_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, second = (write(tmp_path / name, '{"old": 1}') for name in ("first.json", "second.json"))
    real = Path.replace

    def full_disk(path: Path, target: Path) -> Path:
        if target == second:
            raise OSError("No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_together({file: json_writer({"new": 1}) for file in (first, second)}, tmp_path)
    assert json.loads(first.read_text()) == json.loads(second.read_text()) == {"old": 1}
    assert sorted(tmp_path.iterdir()) == [first, second]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [("902", "Could not find a dataset with the ID 902"), ("Dataset902_Other", "there is no Dataset902_Other")],
)
def test_an_unknown_dataset_is_bad_input(
    table_of: Path, capsys: pytest.CaptureFixture[str], dataset: str, message: str
):
    assert cli.main(["declare", dataset, "--annotated", str(table_of)]) == 2
    assert message in capsys.readouterr().err
