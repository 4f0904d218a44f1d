"""Nothing is lost or mistaken without a word: cases, masks, channels, overlaps and names of an import."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from clinics import box, write_image, write_patients
from dicom_worlds import box as rectangle
from dicom_worlds import slices, write_series, write_structures
from raw_worlds import read_nifti, stripes, write_nifti, write_raw

from nnunetv2_conemos.conversion import importing
from nnunetv2_conemos.conversion.importing import import_dataset, list_names
from nnunetv2_conemos.errors import ConemosError, InputError

TARGET = "Dataset100_Clinic"
PLACES = {"image": ["{case}/ct.nii.gz"], "mask": "{case}/segmentations/{label}.nii.gz"}


@pytest.fixture
def raw(nnunet_folders: Path) -> Path:
    return nnunet_folders / "nnUNet_raw"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_patients(tmp_path / "clinic", {"p1": {"liver": box(1)}, "p2": {"liver": box(2)}})


def content(raw: Path) -> dict:
    return json.loads((raw / TARGET / "dataset.json").read_text())


def test_a_mask_whose_image_is_missing_is_no_image(raw, tmp_path):
    patients = {"p1": {"liver": box(1)}, "p2": {"liver": box(2)}, "p3": {}}
    source = write_patients(tmp_path / "flat", patients, "{case}.nii.gz", "{case}_{label}.nii.gz")
    (source / "p2.nii.gz").unlink()
    with pytest.raises(
        InputError, match=r"case 'p2': expected an image of it beside p2_liver.nii.gz, which is called as mask"
    ):
        import_dataset(source, TARGET)
    write_image(source / "p2.nii.gz")
    import_dataset(source, TARGET)
    assert content(raw)["numTraining"] == 3


def test_a_map_whose_image_is_missing_is_no_image(raw, tmp_path):
    source = tmp_path / "maps"
    for case in ("p1", "p2"):
        write_image(source / f"{case}.nii.gz")
        write_nifti(source / f"{case}_seg.nii.gz", box(1))
        (source / f"{case}_seg.json").write_text('{"1": "liver"}')
    (source / "p2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"case 'p2': expected an image of it beside p2_seg.nii.gz"):
        import_dataset(source, TARGET)


def test_all_cases_have_the_same_channels(raw, tmp_path):
    source = write_patients(
        tmp_path / "mr",
        {c: {"liver": box(1)} for c in "ab"},
        "images/{case}_0000.nii.gz",
        "masks/{label}/{case}.nii.gz",
    )
    write_image(source / "images" / "a_0001.nii.gz")
    write_image(source / "images" / "b_0002.nii.gz")
    with pytest.raises(InputError, match=r"case 'b': expected the channels 0000, 0001 of case 'a', found 0000, 0002"):
        import_dataset(source, TARGET)


def test_volumes_that_no_pattern_names_are_said(raw, source, tmp_path):
    (source / "p2" / "more").mkdir()
    write_nifti(source / "p2" / "more" / "spleen.nii.gz", box(4))
    said = "1 volume(s) fit no pattern and are left out: p2/more/spleen.nii.gz"
    assert said in list_names(source, tmp_path / "labels.yaml", **PLACES).layout
    assert said in import_dataset(source, TARGET, **PLACES).notes
    report = import_dataset(source, "Dataset101_Anonymous", anonymise=tmp_path / "who.csv", **PLACES)
    assert said.partition(":")[0] in report.notes


def test_several_links_to_a_folder_are_several_cases(raw, tmp_path, source):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, to in (("a", "p1"), ("b", "p1"), ("c", "p2")):
        (tree / name).symlink_to(source / to)
    import_dataset(tree, TARGET)
    assert content(raw)["numTraining"] == 3


def test_a_folder_that_cannot_be_opened_is_an_error(raw, source, monkeypatch):
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("p2/segmentations"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ConemosError, match=r"the folder .*p2/segmentations cannot be read: Permission denied"):
        import_dataset(source, TARGET)


def dicom_patient(folder: Path, name: str, modality: str = "CT") -> None:
    series = slices(np.zeros((4, 20, 10), np.int16), name)
    for one in series:
        one.Modality = modality
    write_series(folder, series)
    write_structures(folder / "rs.dcm", series, [("liver", [("CLOSED_PLANAR", rectangle(33))])])


def test_linked_folders_of_dicom_are_read(raw, tmp_path):
    dicom_patient(tmp_path / "pacs" / "a", "A")
    dicom_patient(tmp_path / "store" / "b", "B")
    (tmp_path / "pacs" / "b").symlink_to(tmp_path / "store" / "b")
    import_dataset(tmp_path / "pacs", TARGET)
    assert content(raw)["sources"]["all labels"]["cases"] == ["A", "B"]


def test_cases_that_are_not_all_ct_are_not_called_ct(raw, tmp_path):
    dicom_patient(tmp_path / "pacs" / "a", "A")
    dicom_patient(tmp_path / "pacs" / "b", "B", "MR")
    report = import_dataset(tmp_path / "pacs", TARGET)
    assert content(raw)["channel_names"] == {"0": "image"}
    assert any(note.startswith("1 of 2 cases are CT; channels are called image") for note in report.notes)


def test_a_raw_dataset_keeps_the_names_of_its_channels(raw):
    write_raw(raw / "Dataset003_Old", {"background": 0, "liver": 1}, {"a": stripes(1)})
    file = raw / "Dataset003_Old" / "dataset.json"
    old = json.loads(file.read_text())
    old["channel_names"] = {"0": "CT"}
    file.write_text(json.dumps(old))
    import_dataset(raw / "Dataset003_Old", TARGET)
    assert content(raw)["channel_names"] == {"0": "CT"}
    import_dataset(raw / "Dataset003_Old", TARGET, channels=["noNorm"], overwrite=True)
    assert content(raw)["channel_names"] == {"0": "noNorm"}


def test_a_label_that_is_absent_by_a_list_is_around_nothing(raw, tmp_path):
    patients = {"p1": {"outer": box(1, 2), "inner": box(2)}, "p2": {"inner": box(3)}}
    source = write_patients(tmp_path / "clinic", patients)
    import_dataset(source, TARGET, regions=True)
    with pytest.raises(InputError, match="'inner' and 'outer' share 21 voxels"):
        import_dataset(source, "Dataset101_B", regions=True, absent={"p2": ["outer"]})


def test_voxels_of_a_file_beside_its_header_are_read_again(raw, source, monkeypatch):
    for file in source.glob("*/*/liver.nii.gz"):
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(file)), str(file.with_name("liver.mhd")))
        file.unlink()
    with monkeypatch.context() as interrupted:
        interrupted.setattr(importing, "plan_import", None)
        with pytest.raises(TypeError):
            import_dataset(source, TARGET)
    voxels = source / "p1" / "segmentations" / "liver.raw"
    voxels.write_bytes(np.ascontiguousarray(box(5)).tobytes())
    import_dataset(source, TARGET)
    assert (read_nifti(raw / TARGET / "labelsTr" / "p1.nii.gz") == box(5)).all()


def test_an_error_that_nobody_expects_is_private_too(raw, source, tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise KeyError("Meier")

    monkeypatch.setattr(importing, "plan_import", fail)
    with pytest.raises(InputError, match="could hold names of patients: see") as caught:
        import_dataset(source, TARGET, anonymise=tmp_path / "who.csv")
    assert "Meier" not in str(caught.value)
    assert "KeyError: 'Meier'" in (tmp_path / "who.messages.txt").read_text()
