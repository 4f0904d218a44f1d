"""The tools on real volumes: really partial head-and-neck labels, and a simulated split of a complete dataset."""

import json
from pathlib import Path

from real import DATA, real_data

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.cli import main
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import raw_cases

pytestmark = real_data


def linked(name: str, base: Path, dataset: str, cases: str = "*") -> Path:
    """A raw dataset whose volumes are links to those of the cases; its dataset.json is a copy."""
    folder = base / "nnUNet_raw" / dataset
    for part, files in (("imagesTr", f"{cases}_0000.nii.gz"), ("labelsTr", f"{cases}.nii.gz")):
        (folder / part).mkdir(parents=True)
        for file in (DATA / name / part).glob(files):
            (folder / part / file.name).symlink_to(file.resolve())
    content = json.loads((DATA / name / "dataset.json").read_text())
    content["numTraining"] = len(list((folder / "labelsTr").iterdir()))
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def table_of(folder: Path) -> SourceTable:
    return SourceTable.from_dataset_json(read_dataset_json(folder), raw_cases(folder))


def test_really_partial_openkbp_is_declared_and_checked(nnunet_folders):
    folder = linked("OpenKBP", nnunet_folders, "Dataset704_OpenKBP")
    annotated = DATA / "OpenKBP" / "annotated.json"
    assert main(["declare", "704", "--annotated", str(annotated)]) == 0
    table = table_of(folder)
    expected = json.loads(annotated.read_text())
    assert {case: set(table.annotated(case)) for case in table.cases} == {c: set(v) for c, v in expected.items()}
    per_label = dict(zip(table.labels.names, table.counts().sum(0).tolist(), strict=True))
    assert per_label["SpinalCord"] == 150
    assert per_label["Esophagus"] == 57


def test_a_wrong_table_of_openkbp_is_found_by_check(nnunet_folders, capsys):
    """The mandible left out of the table: its value stands in maps that are not annotated for it."""
    cases = table_of(linked("OpenKBP", nnunet_folders, "Dataset704_OpenKBP", "pt_1?")).cases
    true = json.loads((DATA / "OpenKBP" / "annotated.json").read_text())
    wrong = nnunet_folders / "wrong.json"
    fewer = {case: [n for n in true[case] if n != "Mandible"] for case in cases}
    wrong.write_text(json.dumps(fewer))
    assert main(["declare", "704", "--annotated", str(wrong)]) == 0
    capsys.readouterr()
    assert main(["check", "704", "-np", "1"]) == 1
    shown = capsys.readouterr().out
    assert "pt_1" in shown
    assert "Mandible" in shown
