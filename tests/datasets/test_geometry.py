"""Grids from headers and from nnU-Net's readers say the same about two files."""

from pathlib import Path

import pytest
import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from raw_worlds import stripes

from nnunetv2_conemos.datasets.geometry import as_sitk, first_difference, grid_of_array, grid_of_header, in_words


def write(file: Path, **changes: tuple[float, ...]) -> Path:
    image = SimpleITK.GetImageFromArray(stripes(1))
    for name, values in changes.items():
        getattr(image, f"Set{name.capitalize()}")(values)
    SimpleITK.WriteImage(image, str(file))
    return file


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, None),
        ({"spacing": (1.0005, 1.0, 1.0)}, None),
        ({"spacing": (1.5, 1.0, 1.0)}, "spacing"),
        ({"origin": (0.0, 0.0, -2.0)}, "origin"),
        ({"direction": (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)}, "direction"),
    ],
)
def test_headers_and_arrays_tell_the_same_differences(tmp_path: Path, changes: dict, name: str | None):
    files = write(tmp_path / "a.nii.gz"), write(tmp_path / "b.nii.gz", **changes)
    headers = [grid_of_header(file) for file in files]
    assert first_difference(*headers) == name
    read = [SimpleITKIO().read_images([str(file)]) for file in files]
    assert first_difference(*(grid_of_array(data.shape[1:], properties) for data, properties in read)) == name


def test_the_size_comes_first_and_dimensions_count(tmp_path: Path):
    whole = grid_of_array((3, 6, 7), {"spacing": (2, 1, 1)})
    assert first_difference(whole, grid_of_array((3, 6, 8), {"spacing": (5, 1, 1)})) == "size"
    assert first_difference(whole, grid_of_array((6, 7), {"spacing": (1, 1)})) == "size"
    assert in_words(whole["spacing"]) == "(2, 1, 1)"


def test_files_without_a_trustworthy_header_have_no_grid(tmp_path: Path):
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    (tmp_path / "colours.png").touch()
    assert grid_of_header(tmp_path / "broken.nii.gz") is None
    assert grid_of_header(tmp_path / "colours.png") is None


def test_an_array_becomes_the_image_that_it_was_read_from(tmp_path: Path):
    file = write(tmp_path / "a.nii.gz", spacing=(1.0, 2.0, 3.0), origin=(4.0, 5.0, 6.0))
    data, properties = SimpleITKIO().read_images([str(file)])
    image = as_sitk(data[0], properties)
    assert (image.GetSpacing(), image.GetOrigin()) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    with pytest.raises(ValueError, match="reads with nibabel cannot be converted"):
        as_sitk(data[0], {"nibabel_stuff": {}, "spacing": (1, 1, 1)})
