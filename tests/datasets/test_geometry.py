"""Grids from headers and from nnU-Net's readers say the same about two files, for every reader."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from raw_worlds import stripes

from nnunetv2_conemos.datasets.geometry import (
    Grid,
    as_sitk,
    corners_apart,
    difference,
    grid_of_array,
    grid_of_header,
    in_words,
    reoriented,
    reoriented_array,
)
from nnunetv2_conemos.datasets.orientations import anatomical, describe_orientations

READERS = [SimpleITKIO(), NibabelIO(), SimpleITKIOWithReorient(), NibabelIOWithReorient()]
MIRRORED = (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)


def write(file: Path, **changes: tuple[float, ...]) -> Path:
    image = SimpleITK.GetImageFromArray(stripes(1))
    for name, values in changes.items():
        getattr(image, f"Set{name.capitalize()}")(values)
    SimpleITK.WriteImage(image, str(file))
    return file


def name_of(grids: list[Grid]) -> str | None:
    found = difference(*grids)
    return found and found.name


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: type(reader).__name__)
@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, None),
        ({"spacing": (1.0005, 1.0, 1.0)}, None),
        ({"origin": (0.4, 0.0, 0.0)}, None),
        ({"origin": (0.5, 0.0, 0.0)}, "origin"),
        ({"spacing": (1.5, 1.0, 1.0)}, "spacing"),
        ({"origin": (0.0, 0.0, -2.0)}, "origin"),
        ({"direction": (0.0, 1.0, 0, -1.0, 0, 0, 0, 0, 1.0)}, "direction"),
    ],
)
def test_headers_and_arrays_tell_the_same_differences(
    tmp_path: Path, reader: BaseReaderWriter, changes: dict, name: str | None
):
    if name == "direction" and isinstance(reader, SimpleITKIOWithReorient | NibabelIOWithReorient):
        name = "size"  # turned back, the sides of the volume change places
    files = write(tmp_path / "a.nii.gz"), write(tmp_path / "b.nii.gz", **changes)
    assert name_of([grid_of_header(file, reader) for file in files]) == name  # type: ignore[misc]
    read = [reader.read_images([str(file)]) for file in files]
    assert name_of([grid_of_array(data.shape[1:], properties) for data, properties in read]) == name


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: type(reader).__name__)
def test_a_mirrored_copy_in_the_same_place_is_another_grid_unless_the_reader_turns_it_back(tmp_path: Path, reader):
    plain = write(tmp_path / "a.nii.gz")
    image = SimpleITK.GetImageFromArray(stripes(1)[:, ::-1, ::-1])
    image.SetDirection(MIRRORED)
    image.SetOrigin((6.0, 5.0, 0.0))
    SimpleITK.WriteImage(image, str(tmp_path / "b.nii.gz"))
    (one, own), (other, theirs) = (reader.read_seg(str(file)) for file in (plain, tmp_path / "b.nii.gz"))
    turns = isinstance(reader, SimpleITKIOWithReorient | NibabelIOWithReorient)
    grids = [grid_of_array(one.shape[1:], own), grid_of_array(other.shape[1:], theirs)]
    assert name_of(grids) == (None if turns else "direction")
    assert np.array_equal(one, other) == turns


def test_every_reader_gives_one_file_the_same_place(tmp_path: Path):
    file = write(tmp_path / "a.nii.gz", spacing=(1.0, 2.0, 3.0), origin=(4.0, 5.0, 6.0), direction=MIRRORED)
    grids = [grid_of_header(file, reader) for reader in READERS]
    assert [grid.orientation for grid in grids if grid] == ["RAS", "RAS", "RAS", "RAS"]
    assert grid_of_header(write(tmp_path / "b.nii.gz"), SimpleITKIO()).orientation == "LPS"  # type: ignore[union-attr]
    assert all(difference(grids[0], grid) is None for grid in grids if grid and grids[0])


def test_a_tolerance_in_voxels_does_not_depend_on_the_place_in_the_world():
    near, far = (Grid((9, 9, 9), (1.0,) * 3, np.eye(4)) for _ in range(2))
    for grid in (near, far):
        grid.affine[:3, 3] = -1200  # type: ignore[index]
    far.affine[0, 3] += 1.1  # type: ignore[index]
    assert corners_apart(near, far) == pytest.approx(1.1)
    assert str(difference(near, far)) == (
        "expected (-1200, -1200, -1200), found (-1198.9, -1200, -1200) (corners up to 1.1 voxels apart)"
    )


def test_a_small_rotation_counts_by_what_it_moves():
    def turned(size: int, degrees: float) -> Grid:
        affine = np.eye(4)
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        affine[:2, :2] = [[c, -s], [s, c]]
        return Grid((size, size, 3), (1.0,) * 3, affine)

    assert difference(turned(24, 0), turned(24, 0.07)) is None
    assert difference(turned(512, 0), turned(512, 0.07)).name == "direction"  # type: ignore[union-attr]


def test_the_size_comes_first_and_spacing_counts_where_nothing_else_is_known():
    whole = grid_of_array((3, 6, 7), {"spacing": (2, 1, 1)})
    assert difference(whole, grid_of_array((3, 6, 8), {"spacing": (5, 1, 1)})).name == "size"  # type: ignore[union-attr]
    assert difference(whole, grid_of_array((6, 7), {"spacing": (1, 1)})).name == "size"  # type: ignore[union-attr]
    assert difference(whole, grid_of_array((3, 6, 7), {"spacing": (3, 1, 1)})).name == "spacing"  # type: ignore[union-attr]
    assert difference(whole, whole._replace(spacing=())) is None
    assert in_words(whole.spacing) == "(1, 1, 2)"
    assert grid_of_header(Path("colours.png"), NaturalImage2DIO()) is None


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI", "SPL", "AIL"])
def test_turning_an_array_and_its_grid_is_what_simpleitk_does(tmp_path: Path, orientation: str):
    file = write(tmp_path / "a.nii.gz", spacing=(1.0, 2.0, 3.0), origin=(4.0, 5.0, 6.0))
    data, properties = SimpleITKIO().read_images([str(file)])
    data[0] += np.random.default_rng(0).random(data[0].shape)
    grid = grid_of_array(data.shape[1:], properties)
    expected = SimpleITK.DICOMOrient(as_sitk(data[0], grid), orientation)
    turned = reoriented(grid, orientation)
    assert turned.orientation == orientation
    found = as_sitk(reoriented_array(data[0], grid, orientation), turned)
    assert np.array_equal(SimpleITK.GetArrayFromImage(found), SimpleITK.GetArrayFromImage(expected))
    for name in ("Spacing", "Origin", "Direction"):
        assert np.allclose(getattr(found, f"Get{name}")(), getattr(expected, f"Get{name}")())


def test_an_array_becomes_the_image_that_it_was_read_from(tmp_path: Path):
    file = write(tmp_path / "a.nii.gz", spacing=(1.0, 2.0, 3.0), origin=(4.0, 5.0, 6.0))
    for reader in (SimpleITKIO(), NibabelIO()):
        data, properties = reader.read_images([str(file)])
        image = as_sitk(data[0], grid_of_array(data.shape[1:], properties))
        assert np.allclose(image.GetSpacing(), (1.0, 2.0, 3.0))
        assert np.allclose(image.GetOrigin(), (4.0, 5.0, 6.0))
        assert np.allclose(image.GetDirection(), np.eye(3).ravel())


def test_sheared_axes_are_not_converted():
    sheared = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6)), sheared)
    assert image.affine is not None
    with pytest.raises(ValueError, match="not at right angles"):
        as_sitk(np.zeros((6, 5, 4)), Grid((4, 5, 6), (1.0, 1.02, 1.0), image.affine))


def test_orientations_in_words():
    assert describe_orientations({"a": "LPS", "b": "LPS", "c": ""}) == ""
    mixed = describe_orientations({"a": "LPS", "b": "RAS", "c": "LPS"})
    assert mixed == "images are stored in 2 orientations: 2 in LPS order (a, c); 1 in RAS order (b)"
    assert anatomical("ras") == "RAS"
    for wrong in ("RAL", "LP", "XYZ", "LLL"):
        with pytest.raises(ValueError, match="expected one of each"):
            anatomical(wrong)
