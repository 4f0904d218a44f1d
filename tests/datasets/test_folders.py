"""Where datasets lie: cases are those that nnU-Net finds."""

from pathlib import Path

import pytest
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets
from raw_worlds import stripes, write_raw

from nnunetv2_conemos.datasets.folders import image_lists, raw_cases
from nnunetv2_conemos.errors import InputError

LABELS = {"background": 0, "liver": 1}


def test_cases_are_those_that_nnunet_finds(tmp_path: Path):
    cases = {case: stripes(1) for case in ("b", "a", "a_1", "a_0001", "A")}
    folder = write_raw(tmp_path / "Dataset001_Odd", LABELS, cases, channels=("T1", "T2"))
    (folder / "imagesTr" / "a_0000.nii").touch()
    (folder / "imagesTr" / "folder_0000.nii.gz").mkdir()
    found, theirs = raw_cases(folder), get_filenames_of_train_images_and_targets(str(folder))
    assert list(found) == list(theirs)
    assert found == theirs
    assert found["a"]["images"] == [str(folder / "imagesTr" / f"a_000{channel}.nii.gz") for channel in (0, 1)]


def test_images_without_a_channel_are_refused(tmp_path: Path):
    folder = write_raw(tmp_path / "Dataset001_Odd", LABELS, {"b": stripes(1), "a": stripes(1)})
    assert [Path(file).name for (file,) in image_lists(folder / "imagesTr", ".nii.gz")] == [
        "a_0000.nii.gz",
        "b_0000.nii.gz",
    ]
    (folder / "imagesTr" / "stray.nii.gz").touch()
    for read in (lambda: image_lists(folder / "imagesTr", ".nii.gz"), lambda: raw_cases(folder)):
        with pytest.raises(ValueError, match=r"expected images CASE_0000\.nii\.gz.*found 'stray\.nii\.gz'"):
            read()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a_0000.nii.gz", "a_0002.nii.gz"], r"case 'a': expected a_0000\.nii\.gz, a_0001\.nii\.gz, found"),
        (["a_0001.nii.gz"], r"case 'a': expected a_0000\.nii\.gz"),
        (["a_000.nii.gz"], r"found 'a_000\.nii\.gz'"),
        (["a_0000.nii", "b_0000.nii"], r"expected images CASE_0000\.nii\.gz, found a_0000\.nii, b_0000\.nii"),
        (["_0000.nii.gz"], r"case ids that can be the names of files, found '' \(empty\)"),
        (["a\nb_0000.nii.gz"], r"found 'a\\nb'"),
        (["._a_0000.nii.gz"], "macOS"),
    ],
)
def test_names_that_nnunet_would_misread_are_refused(tmp_path: Path, names: list[str], message: str):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=message):
        image_lists(tmp_path, ".nii.gz")


@pytest.mark.parametrize("case", ["../../Dataset002_B/labelsTr/a", "..", "", "a\0b"])
def test_a_dataset_json_cannot_name_cases_that_leave_the_folder(tmp_path: Path, case: str):
    listed = {case: {"images": ["x.nii.gz"], "label": "x.nii.gz"}}
    folder = write_raw(tmp_path / "Dataset001_Listed", LABELS, {"a": stripes(1)}, dataset=listed)
    with pytest.raises(InputError, match=r"dataset\.json, `dataset`: expected case ids"):
        raw_cases(folder)


def test_a_dataset_json_that_lists_its_cases_is_followed(tmp_path: Path):
    listed = {"x": {"images": ["../elsewhere/x.nii.gz"], "label": "labelsTr/x.nii.gz"}}
    folder = write_raw(tmp_path / "Dataset001_Listed", LABELS, {"a": stripes(1)}, dataset=listed)
    assert raw_cases(folder) == {
        "x": {"images": [str(tmp_path / "elsewhere/x.nii.gz")], "label": str(folder / "labelsTr/x.nii.gz")}
    }
