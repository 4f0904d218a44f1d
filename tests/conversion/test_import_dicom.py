"""DICOM all the way: a tree of patients becomes a dataset, its label maps go back, and come again as the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_worlds import box, save, segmentation, slices, write_series, write_structures
from raw_worlds import read_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.conversion.convert import convert
from nnunetv2_conemos.conversion.importing import import_dataset, import_images
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.errors import InputError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (5, 20, 10)).astype(np.int16)
CLOSED = "CLOSED_PLANAR"


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """Two patients annotated for different structures under different names, and one without structures."""
    folder = tmp_path / "pacs"
    drawn = {
        "Bär": [("LEBER", [(CLOSED, box(33))]), ("PTV", [])],
        "Cox": [("liver", []), ("Milz", [(CLOSED, box(36))])],
    }
    for patient, rois in drawn.items():
        series = slices(VOXELS, patient)
        write_series(folder / patient, series)
        write_structures(folder / "plans" / f"{patient}.dcm", series, rois)
    write_series(folder / "x", slices(VOXELS, "Abt"))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    file = tmp_path / "labels.yaml"
    file.write_text("liver: [Leber]\nspleen: [Milz]\nignore: [PTV]\n")
    return file


def test_structure_sets_become_a_partially_labelled_dataset(clinic, labels, nnunet_folders, capsys):
    assert cli.main(["import", str(clinic), "-o", "Dataset100_A", "--labels", str(labels), "-np", "1"]) == 0
    raw = nnunet_folders / "nnUNet_raw" / "Dataset100_A"
    table = SourceTable.from_dataset_json(json.loads((raw / "dataset.json").read_text()), raw_cases(raw))
    annotated = {case: table.annotated(case) for case in table.cases}
    assert annotated == {"Abt": (), "Bar": ("liver",), "Cox": ("liver", "spleen")}
    assert np.array_equal(read_nifti(raw / "imagesTr" / "Bar_0000.nii.gz"), VOXELS)
    expected = np.zeros(VOXELS.shape)
    expected[1, 4:8, 3:8] = 1
    assert np.array_equal(read_nifti(raw / "labelsTr" / "Bar.nii.gz"), expected)


@pytest.mark.parametrize("form", ["rtstruct", "dicomseg"])
def test_once_around_nothing_changes(clinic, labels, nnunet_folders, tmp_path, form):
    first = import_dataset(clinic, "Dataset100_A", labels=labels).folder
    convert(first, tmp_path / "out", form=form)
    again = tmp_path / "again"
    for file in [*(tmp_path / "out").rglob("*.dcm"), *clinic.glob("[BCx]*/*.dcm")]:
        target = again / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    second = import_dataset(again, "Dataset101_B", labels={"liver": [], "spleen": []}).folder
    old, new = (json.loads((raw / "dataset.json").read_text()) for raw in (first, second))
    assert (old["labels"], old["sources"]) == (new["labels"], new["sources"])
    for case in ("Abt", "Bar", "Cox"):
        for name in (f"labelsTr/{case}.nii.gz", f"imagesTr/{case}_0000.nii.gz"):
            assert np.array_equal(read_nifti(first / name), read_nifti(second / name))


def test_no_name_of_a_patient_is_left_in_an_anonymous_dataset(clinic, labels, nnunet_folders, tmp_path, capsys):
    raw = import_dataset(clinic, "Dataset100_A", labels=labels, anonymise=tmp_path / "who.csv").folder
    texts = [file.read_text() for file in raw.rglob("*") if file.suffix in (".json", ".csv", ".txt")]
    everything = "".join([*texts, *capsys.readouterr(), *(str(file) for file in raw.rglob("*"))])
    assert not [name for name in ("Bär", "Bar_", "Cox", "Abt") if name in everything.replace(str(tmp_path), "")]
    assert "Cox" in (tmp_path / "who.csv").read_text()


def test_problems_of_an_anonymous_import_are_not_printed(clinic, labels, nnunet_folders, tmp_path):
    (clinic / "Cox" / "014_2.dcm").unlink()
    with pytest.raises(InputError, match="2 problem") as error:
        import_dataset(clinic, "Dataset100_A", labels=labels, anonymise=tmp_path / "who.csv")
    assert "Cox" not in str(error.value)
    assert "patient 'Cox'" in (tmp_path / "who.messages.txt").read_text()


def test_images_to_predict(clinic, tmp_path):
    found = import_images(clinic, tmp_path / "images", layout="rtstruct")
    assert found.cases == 3
    assert np.array_equal(read_nifti(tmp_path / "images" / "Cox_0000.nii.gz"), VOXELS)


def test_a_segmentation_on_another_grid_is_refused_or_resampled(tmp_path, nnunet_folders):
    series, mask = slices(VOXELS), VOXELS > 0
    write_series(tmp_path / "pacs", series)
    coarse = segmentation(series, {"liver": mask}, apart=6.0, every=2)
    coarse.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 6.0
    save(coarse, tmp_path / "pacs" / "seg.dcm")
    with pytest.raises(InputError, match="--resample"):
        import_dataset(tmp_path / "pacs", "Dataset100_A", labels="names")
    report = import_dataset(tmp_path / "pacs", "Dataset100_A", labels="names", resample=True)
    found = read_nifti(report.folder / "labelsTr" / "P1.nii.gz")
    assert np.array_equal(found[::2], mask[::2])
