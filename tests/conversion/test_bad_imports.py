"""Files that cannot be imported: each is named with case, what was expected, what was found, and what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clinics import SPACING, box, write_image, write_patients
from raw_worlds import write_nifti

from nnunetv2_conemos.conversion.importing import import_dataset
from nnunetv2_conemos.conversion.problems import ImportProblemsError
from nnunetv2_conemos.errors import ConemosError, InputError

TARGET = "Dataset100_Clinic"
MASK = "p1/segmentations/liver.nii.gz"


@pytest.fixture
def source(tmp_path: Path, nnunet_folders: Path) -> Path:
    return write_patients(tmp_path / "clinic", {"p1": {"liver": box(1)}, "p2": {"liver": box(2)}})


def refused(source: Path, message: str, **options: object) -> None:
    with pytest.raises(ConemosError, match=message):
        import_dataset(source, TARGET, **options)
    assert not (source.parent / "nnUNet_raw" / TARGET).exists()


def test_values_other_than_those_of_a_mask(source):
    write_nifti(source / MASK, box(1) + box(2, value=3), SPACING)
    refused(source, r"case 'p1': .*liver.nii.gz: expected a mask of 0 and 1, or of 0 and 255, found the values 0, 1, 3")


def test_fractions(source):
    write_nifti(source / MASK, box(1).astype(np.float32) / 2, SPACING)
    refused(source, r"case 'p1': .*liver.nii.gz: expected label values.*0.5")


def test_a_mask_that_cannot_be_read(source):
    (source / MASK).write_bytes((source / MASK).read_bytes()[:60])
    refused(source, r"case 'p1': .*liver.nii.gz (is damaged|cannot be read)")


def test_a_mask_on_another_grid(source):
    write_nifti(source / MASK, box(1), (1.0, 1.0, 3.0))
    refused(
        source, r"case 'p1': 'liver' in .*liver.nii.gz: spacing differs.*\(1, 1, 2\), found \(1, 1, 3\).*--resample"
    )
    report = import_dataset(source, TARGET, resample=True)
    assert any("case 'p1': 1 structure(s) resampled to the image's grid: liver" in note for note in report.notes)


def test_an_image_that_is_not_finite(source):
    write_nifti(source / "p2" / "ct.nii.gz", np.full(box().shape, np.nan, dtype=np.float32), SPACING)
    refused(source, r"case 'p2': .*ct.nii.gz.*: expected finite numbers, found 126 voxel")


def test_all_problems_are_listed_at_once(source):
    write_nifti(source / MASK, box(1, value=9), SPACING)
    (source / "p2" / "segmentations" / "liver.nii.gz").write_bytes(b"no volume")
    with pytest.raises(ConemosError, match=r"(?s)2 problem.*'p1'.*'p2'"):
        import_dataset(source, TARGET)


def test_a_long_list_of_problems_is_written_to_a_file(tmp_path, nnunet_folders):
    patients = {f"p{number:02d}": {"liver": box(1, value=9)} for number in range(25)}
    source = write_patients(tmp_path / "clinic", patients)
    refused(source, r"(?s)25 problem\(s\).*'p19'.*and 5 more\n  all of them: .*Dataset100_Clinic.problems.txt")
    assert "'p24'" in (nnunet_folders / "nnUNet_raw" / f"{TARGET}.problems.txt").read_text()


def test_two_images_of_a_case(source):
    write_image(source / "p1" / "image.nii.gz")
    refused(source, r"case 'p1': expected one image .*found 2: p1/ct.nii.gz, p1/image.nii.gz.*--image A B")


def test_masks_without_an_image(source):
    (source / "p2" / "ct.nii.gz").unlink()
    where = {"image": ["{case}/ct.nii.gz"], "mask": "{case}/segmentations/{label}.nii.gz"}
    refused(source, r"case 'p2': expected an image {case}/ct.nii.gz, found only p2/seg.*Add it, or remove", **where)


def test_a_case_that_lacks_a_channel(source):
    write_image(source / "p1" / "pet.nii.gz")
    where = {"image": ["{case}/ct.nii.gz", "{case}/pet.nii.gz"], "mask": "{case}/segmentations/{label}.nii.gz"}
    refused(source, r"case 'p2': expected 2 channels .*found p2/ct.nii.gz", **where)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": ["{case}/mr.nii.gz"], "mask": "{case}/x/{label}.nii.gz"}, "expected images .*found none among 4"),
        ({"image": ["{case}/ct.nii.gz"], "mask": "{case}/x/{label}.nii.gz"}, "expected masks .*found none for 2 image"),
        ({"mask": "{case}/x/{label}.nii.gz"}, "expected a pattern of the images as well"),
        ({"image": ["{case}/ct.nii.gz"], "mask": "{case}/x.nii.gz", "layout": "masks"}, r"expected {label} in it"),
        ({"image": ["ct.nii.gz"]}, "expected a path with {case}"),
        ({"layout": "nnunet", "table": "x.csv"}, "leave --image, --mask and --table out"),
        ({"layout": "segmentation"}, r"expected files in one of the layouts segmentation, found none"),
        ({"order": ["spleen"]}, "--order: expected labels of the dataset"),
        ({"labels": {"Leber": ["x"]}}, r"expected names that labels knows, found 1 other\(s\): 'liver' \(2 case"),
        ({"channels": ["T1", "T2"]}, r"expected 2 channel\(s\) as in --channels"),
    ],
)
def test_options_that_fit_nothing(source, options, message):
    refused(source, message, **options)


def test_a_folder_without_cases_says_what_was_tried(tmp_path, nnunet_folders):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match=r"(?s)found none:.*nnunet: no dataset.json.*rtstruct: none.*masks: no volumes"
    ):
        import_dataset(tmp_path / "empty", TARGET)
    refused(tmp_path / "nowhere", "there is no folder")


def test_a_folder_of_two_layouts_is_for_the_user_to_decide(source):
    content = bytes(128) + b"DICM" + b"\x02\x00\x02\x00UI\x1d\x001.2.840.10008.5.1.4.1.1.481.3"
    (source / "p1" / "rs.dcm").write_bytes(content)
    refused(source, r"(?s)found several:\n  rtstruct: 1 DICOM file.*\n  masks: ")


def test_nothing_annotated_at_all(tmp_path, nnunet_folders):
    source = write_patients(tmp_path / "clinic", {"p1": {"liver": box()}})
    refused(source, "nothing is annotated in any case", empty="unknown")


def test_problems_survive_the_way_between_processes():
    import pickle

    error = pickle.loads(pickle.dumps(ImportProblemsError([f"problem {number}" for number in range(30)])))
    assert len(error.problems) == 30
    assert "and 10 more" in str(error)
