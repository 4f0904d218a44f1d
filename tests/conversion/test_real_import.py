"""Real volumes as clinics keep them, imported again: the result equals the original, voxel by voxel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from raw_worlds import read_nifti
from real import DATA, real_data

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import group_sources
from nnunetv2_conemos.conversion.convert import Form, convert
from nnunetv2_conemos.conversion.importing import import_dataset
from nnunetv2_conemos.datasets.folders import raw_cases

pytestmark = real_data
SOME = 6  # cases; together they show every label

# label -> what clinics call it; each case takes another one
NAMES = {
    "Brainstem": ["Brainstem", "brain stem", "Hirnstamm", "BRAIN_STEM"],
    "SpinalCord": ["SpinalCord", "Spinal Cord", "Myelon", "cord", "Rückenmark"],
    "RightParotid": ["RightParotid", "Parotid_R", "parotis re.", "PAROTID R"],
    "LeftParotid": ["LeftParotid", "Parotid_L", "Parotis links", "l parotid"],
    "Esophagus": ["Esophagus", "Oesophagus", "Ösophagus", "Speiseröhre"],
    "Larynx": ["Larynx", "larynx", "Kehlkopf"],
    "Mandible": ["Mandible", "Unterkiefer", "Bone-Mandible", "mandibula"],
}


def original(name: str, folder: Path, cases: int | None) -> Path:
    """A raw dataset of the first cases, with `sources` where a table says who annotated what."""
    content = json.loads((DATA / name / "dataset.json").read_text())
    files = sorted((DATA / name / "labelsTr").iterdir())[:cases]
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for file in files:
        (folder / "labelsTr" / file.name).symlink_to(file)
        image = file.name.replace(".nii.gz", "_0000.nii.gz")
        (folder / "imagesTr" / image).symlink_to(DATA / name / "imagesTr" / image)
    table = DATA / name / "annotated.json"
    if table.is_file():
        known = {file.name.removesuffix(".nii.gz") for file in files}
        annotated = {case: labels for case, labels in json.loads(table.read_text()).items() if case in known}
        content["sources"] = group_sources(annotated, LabelSpace.from_dataset_json(content))
    (folder / "dataset.json").write_text(json.dumps(content | {"numTraining": len(files)}))
    return folder


def at_the_clinic(raw: Path, folder: Path, form: Form) -> Path:
    """The images and annotations of a raw dataset in a form of the clinic, with names that differ between cases."""
    convert(raw, folder, form=form)
    for number, (case, files) in enumerate(raw_cases(raw).items()):
        (folder / case).mkdir(exist_ok=True)
        (folder / case / "ct.nii.gz").symlink_to(files["images"][0])
        for label, names in NAMES.items():
            rename(folder / case, label, names[number % len(names)])
    return folder


def rename(case: Path, label: str, name: str) -> None:
    mask = case / "segmentations" / f"{label}.nii.gz"
    if mask.is_file():
        mask.rename(mask.with_name(f"{name}.nii.gz"))
    file = case / "segmentation.seg.nrrd"
    if file.is_file():
        text, end, data = file.read_bytes().partition(b"\n\n")
        file.write_bytes(text.replace(f"_Name:={label}\n".encode(), f"_Name:={name}\n".encode()) + end + data)


def require_equal(raw: Path, new: Path) -> int:
    """Compare two datasets: labels, who annotated what, images and label maps; return the number of label maps."""
    old_json, new_json = (json.loads((folder / "dataset.json").read_text()) for folder in (raw, new))
    old_cases, new_cases = raw_cases(raw), raw_cases(new)
    old, found = (SourceTable.from_dataset_json(j, c) for j, c in ((old_json, old_cases), (new_json, new_cases)))
    assert new_json["labels"] == old_json["labels"]
    assert new_json.get("sources") == old_json.get("sources", new_json.get("sources"))
    assert found.cases == old.cases
    for case in old.cases:
        assert found.annotated(case) == old.annotated(case)
        assert np.array_equal(*(read_nifti(Path(cases[case]["label"])) for cases in (old_cases, new_cases)))
        assert Path(new_cases[case]["images"][0]).resolve() == Path(old_cases[case]["images"][0]).resolve()
    return len(old.cases)


@pytest.mark.parametrize("form", ["masks", "segmentation"])
def test_really_partial_openkbp_comes_back(nnunet_folders, tmp_path, form):
    raw = original("OpenKBP", tmp_path / "Dataset704_OpenKBP", SOME)
    source = at_the_clinic(raw, tmp_path / "clinic", form)
    labels = tmp_path / "labels.yaml"
    labels.write_text(json.dumps(NAMES, ensure_ascii=False))
    report = import_dataset(source, "Dataset705_Again", labels=labels)
    assert require_equal(raw, report.folder) == SOME
    assert len(report.names) > len(NAMES)


@pytest.mark.parametrize("name", ["ACDC", "CHAOST2"])
def test_complete_datasets_come_back_as_masks(nnunet_folders, tmp_path, name):
    raw = original(name, tmp_path / f"Dataset704_{name}", SOME // 2)
    source = at_the_clinic(raw, tmp_path / "clinic", "masks")
    order = [label for label in json.loads((raw / "dataset.json").read_text())["labels"] if label != "background"]
    report = import_dataset(source, "Dataset705_Again", labels={label: [] for label in order}, channels=["MRI"])
    assert require_equal(raw, report.folder) == SOME // 2
