"""Merging cases that are stored in different orders of axes: said, and brought to one order where that is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from raw_worlds import write_raw

from nnunetv2_conemos import cli
from nnunetv2_conemos.datasets.check import check
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.merge.merge import merge

SIDES = {"background": 0, "left": 1, "right": 2}


def body() -> np.ndarray:
    """A body in LPS order: x grows towards the left, so `left` is at high x; no two axes alike."""
    array = np.zeros((3, 6, 7), dtype=np.uint8)
    array[1:, 2, 5:] = 1
    array[0, 1, :2] = 2
    return array


def store(raw: Path, number: int, orientation: str, **more: object) -> Path:
    """A dataset of two cases of that body, stored in some orientation; the image shows the map, times 10."""
    folder = write_raw(raw / f"Dataset{number:03d}_{orientation}", SIDES, {"a": body(), "b": body()}, **more)
    for file in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        image = SimpleITK.GetImageFromArray((body() * (10 if "imagesTr" in str(file) else 1)).astype(np.int16))
        image.SetSpacing((1.0, 1.5, 2.0))
        image.SetOrigin((-300.0, 20.0, 7.0))
        SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, orientation), str(file), True)
    return folder


@pytest.fixture
def raw(nnunet_folders, monkeypatch) -> Path:
    monkeypatch.setattr("nnunetv2_conemos.datasets.merge.merge.write_report", lambda *_: None)
    folder = nnunet_folders / "nnUNet_raw"
    store(folder, 31, "LPS")
    store(folder, 32, "RAI")
    return folder


def test_a_mixture_of_orientations_is_noted_by_merge_and_check(raw: Path):
    notes = merge([31, 32], "Dataset040_Mixed").notes
    assert any("2 in LPS order (LPS_a, LPS_b); 2 in RAI order (RAI_a, RAI_b)" in note for note in notes)
    (finding,) = [finding for finding in check(40).findings if finding.where == "imagesTr"]
    assert finding.severity == "warning"
    assert "stored in 2 orientations" in finding.what
    assert "--orientation" in finding.remedy
    for number in (31, 32):
        assert not [finding for finding in check(number).findings if finding.where == "imagesTr"]


@pytest.mark.parametrize("orientation", ["LPS", "ras"])
def test_all_cases_are_brought_to_one_orientation_without_resampling(raw: Path, orientation: str):
    assert cli.main(["merge", "31", "32", "-o", "Dataset040_One", "--orientation", orientation, "-np", "1"]) == 0
    made = raw / "Dataset040_One"
    assert "dataset" not in json.loads((made / "dataset.json").read_text())  # every image lies in it
    arrays = []
    for files in raw_cases(made).values():
        image, label = (SimpleITK.ReadImage(file) for file in (*files["images"], files["label"]))
        assert SimpleITK.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection()) == (
            orientation.upper()
        )
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), 10 * SimpleITK.GetArrayFromImage(label))
        upright = SimpleITK.DICOMOrient(label, "LPS")
        assert np.array_equal(SimpleITK.GetArrayFromImage(upright), body())
        assert np.allclose(upright.GetOrigin(), (-300.0, 20.0, 7.0))
        arrays.append(SimpleITK.GetArrayFromImage(label))
    assert len(arrays) == 4
    assert all(np.array_equal(arrays[0], other) for other in arrays)
    assert check(40).findings == []


def test_a_reader_that_reorients_makes_a_mixture_harmless(nnunet_folders, raw: Path):
    reader = {"overwrite_image_reader_writer": "SimpleITKIOWithReorient"}
    store(raw, 33, "LAS", **reader)
    store(raw, 34, "LPI", **reader)
    made = merge([33, 34], "Dataset041_Turned")
    assert not any("orientations" in note for note in made.notes)
    assert check(41).findings == []
    for files in raw_cases(raw / "Dataset041_Turned").values():
        upright = SimpleITK.DICOMOrient(SimpleITK.ReadImage(files["label"]), "LPS")
        assert np.array_equal(SimpleITK.GetArrayFromImage(upright), body())


@pytest.mark.parametrize("reader", ["NibabelIO", "SimpleITKIO"])
def test_a_label_map_stored_mirrored_with_the_header_that_says_so(raw: Path, reader: str):
    folder = store(raw, 35, "LPS", overwrite_image_reader_writer=reader)
    mirrored = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(folder / "labelsTr" / "a.nii.gz")), "RPS")
    SimpleITK.WriteImage(mirrored, str(folder / "labelsTr" / "a.nii.gz"), True)
    for command in (["merge", "31", "35"], ["hide", "35", "--per-case", "1"]):
        assert cli.main([*command, "-o", "Dataset050_Out", "-np", "1"]) == 2
    assert not (raw / "Dataset050_Out").exists()
    (finding,) = check(35).findings
    assert finding.where == "case 'a'"
    assert finding.what.startswith("direction differs between")


def test_files_without_an_orientation_cannot_be_brought_to_one(raw: Path, capsys):
    folder = write_raw(raw / "Dataset036_Flat", SIDES, {"a": body()})
    for file in [*(folder / "imagesTr").iterdir(), *(folder / "labelsTr").iterdir()]:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(body()[0]), str(file), True)
    assert cli.main(["merge", "36", "-o", "Dataset050_Out", "--orientation", "LPS", "-np", "1"]) == 2
    assert "says how it is oriented" in capsys.readouterr().err
    assert cli.main(["merge", "31", "-o", "Dataset050_Out", "--orientation", "LPR", "-np", "1"]) == 2
    assert "expected one of each of LR, PA, SI" in capsys.readouterr().err


def test_a_quick_check_reads_headers_only_and_says_so(raw: Path):
    label = raw / "Dataset031_LPS" / "labelsTr" / "a.nii.gz"
    image = SimpleITK.ReadImage(str(label))
    image[0, 0, 0] = 77
    SimpleITK.WriteImage(image, str(label), True)
    assert [finding.severity for finding in check(31).findings] == ["error"]
    (finding,) = check(31, quick=True).findings
    assert (finding.where, finding.severity) == ("voxels", "warning")
    image.SetSpacing((9.0, 1.5, 2.0))
    SimpleITK.WriteImage(image, str(label), True)
    assert "spacing differs" in check(31, quick=True).findings[0].what
