"""The files that pydicom tests itself with: each is read, passed over, or an error of ours, never another one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest

from nnunetv2_conemos.conversion.dicom_files import RTSTRUCT, SEG, scan_files
from nnunetv2_conemos.conversion.layouts.dicomseg import DicomSegLayout
from nnunetv2_conemos.conversion.layouts.rtstruct import RTStructLayout, contours_of, drawing_of
from nnunetv2_conemos.conversion.problems import ImportProblemsError
from nnunetv2_conemos.conversion.series import read_series, read_volume
from nnunetv2_conemos.errors import ConemosError, InputError, VolumeError

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
LAYOUTS = (RTStructLayout(), DicomSegLayout())


def test_every_file_alone_is_a_volume_or_an_error_of_ours():
    read, unnamed = 0, []
    for file in sorted(path for path in FILES.rglob("*") if path.is_file()):
        try:
            volume = read_volume(read_series([file]))
        except ConemosError as error:
            unnamed += [file] if file.name not in str(error) else []
        else:
            read += 1
            assert volume.data.shape[1:] == volume.grid.size[::-1]
    assert read > 20
    assert not unnamed


def test_every_structure_set_and_segmentation_alone_is_read_or_an_error_of_ours(tmp_path):
    headers = scan_files(sorted(path for path in FILES.rglob("*") if path.is_file())).headers
    drawings = [header for header in headers if header.modality in (RTSTRUCT, SEG)]
    assert len(drawings) == 3
    for number, header in enumerate(drawings):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(header.file, folder)
        layout = LAYOUTS[header.modality == SEG]
        with pytest.raises(InputError, match=r"expected the series that it was drawn on .* no usable series"):
            layout.find(folder)


def test_the_structure_set_without_preamble_is_read():
    drawing = drawing_of(FILES / "rtstruct.dcm")
    assert [structure.name for structure in drawing.structures] == ["patient", "Isocenter 1", "Isocenter 2"]
    assert {kind for contours in contours_of(FILES / "rtstruct.dcm").values() for kind, _ in contours} == {
        "CLOSED_PLANAR",
        "POINT",
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_the_whole_tree_is_one_list_of_problems(layout):
    with pytest.raises(ImportProblemsError) as error:
        layout.find(FILES)
    assert len(error.value.problems) > 20


def outcome(read: Callable[[Path], Any], file: Path) -> Any:
    try:
        return read(file)
    except VolumeError as error:
        return str(error)


def test_a_structure_set_cut_off_anywhere_is_whole_or_an_error_of_ours(tmp_path):
    """Never fewer structures, nor fewer contours."""
    whole, file = (FILES / "rtstruct.dcm").read_bytes(), tmp_path / "rtstruct.dcm"
    file.write_bytes(whole)
    names, contours = drawing_of(file).structures, {key: len(found) for key, found in contours_of(file).items()}
    for length in range(0, len(whole), 37):
        file.write_bytes(whole[:length])
        scan_files([file])
        found = outcome(drawing_of, file)
        assert file.name in found if isinstance(found, str) else found.structures == names, length
        found = outcome(contours_of, file)
        counts = found if isinstance(found, str) else {key: len(value) for key, value in found.items()}
        assert file.name in counts if isinstance(counts, str) else counts == contours, length
