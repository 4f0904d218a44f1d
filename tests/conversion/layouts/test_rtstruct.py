"""Structure sets to voxels: holes, gaps, edges of the image, and contours that are none of this series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_worlds import AXIAL, SAGITTAL, Contours, box, slices, write_series, write_structures

from nnunetv2_conemos.conversion.found import Drawn
from nnunetv2_conemos.conversion.layouts.rtstruct import RTStructLayout
from nnunetv2_conemos.errors import VolumeError

VOXELS = np.zeros((5, 20, 10), dtype=np.int16)  # 2 x 1.5 x 3 mm from (-10, -20, 30)
CLOSED = "CLOSED_PLANAR"


def draw(folder: Path, *rois: tuple[str, Contours], orientation=AXIAL) -> list[Drawn]:
    series = slices(VOXELS, orientation=orientation)
    write_series(folder, series)
    write_structures(folder / "rs.dcm", series, rois)
    layout = RTStructLayout()
    (case,) = layout.find(folder)
    return list(layout.read_structures(case, case.structures, layout.read_image(case)))


def boxed(*places: int) -> np.ndarray:
    """The mask of `box` in these slices: centres of x from -4 to 4 and y from -14 to -9.5 mm."""
    mask = np.zeros(VOXELS.shape, dtype=bool)
    mask[list(places), 4:8, 3:8] = True
    return mask


def test_contours_become_the_voxels_inside_slice_by_slice(tmp_path):
    liver = [(CLOSED, box(z)) for z in (33, 36)]
    hole = [("CLOSEDPLANAR_XOR", box(33)), ("CLOSEDPLANAR_XOR", box(33, (-2.5, 2.5), (-12.6, -10.9)))]
    found = draw(tmp_path, ("Liver", liver), ("Ring", hole), ("Nothing", []))
    assert np.array_equal(found[0].mask, boxed(1, 2))
    ring = boxed(1)
    ring[1, 5:7, 4:7] = False
    assert np.array_equal(found[1].mask, ring)
    assert not found[2].mask.any()
    assert [drawn.notes for drawn in found] == [(), (), ()]


def test_slices_without_contours_between_others_stay_empty_and_are_named(tmp_path):
    (found,) = draw(tmp_path, ("Liver", [(CLOSED, box(z)) for z in (30, 39)]))
    assert np.array_equal(found.mask, boxed(0, 3))
    assert found.notes == ("no contours in slice(s) 1, 2 between others: left empty, not interpolated",)


def test_contours_that_reach_out_of_the_image_are_cut_and_said(tmp_path):
    beyond = (CLOSED, box(33, (-100, 4.9)))
    above, beside = (CLOSED, box(60)), (CLOSED, box(36, (100, 110)))
    (found,) = draw(tmp_path, ("Body", [beyond, above, beside]))
    expected = np.zeros(VOXELS.shape, dtype=bool)
    expected[1, 4:8, :8] = True
    assert np.array_equal(found.mask, expected)
    assert found.notes == (
        "contours reach beyond the edge of the image in 1 slice(s) and are cut off there",
        "2 contour(s) lie outside the image and are left out",
    )


def test_a_contour_twice_does_not_cancel_itself(tmp_path):
    (found,) = draw(tmp_path, ("Liver", [(CLOSED, box(33)), (CLOSED, box(33))]))
    assert np.array_equal(found.mask, boxed(1))
    assert found.notes == ("1 contour(s) are there twice; one of each is used",)


def test_points_beside_closed_contours_are_said(tmp_path):
    (found,) = draw(tmp_path, ("Liver", [(CLOSED, box(33)), ("POINT", [[0, -10, 33]]), (CLOSED, [[0, 0, 33]] * 2)]))
    assert np.array_equal(found.mask, boxed(1))
    assert found.notes == ("2 of 3 contours enclose nothing (2 point(s), POINT)",)


def test_a_contour_between_centres_of_voxels_is_said(tmp_path):
    (found,) = draw(tmp_path, ("Lens", [(CLOSED, box(33, (0.4, 1.6), (-12.1, -11.9)))]))
    assert not found.mask.any()
    assert found.notes == ("its contours enclose no centre of a voxel",)


@pytest.mark.parametrize(
    ("contours", "expected"),
    [
        ([("POINT", [[0, -10, 33]])], r"closed contours, found that 1 of 1 contours enclose nothing \(POINT\)"),
        ([("OPEN_PLANAR", box(33))], r"closed contours.*OPEN_PLANAR"),
        ([(CLOSED, box(34.5))], r"in the planes of slices, found one that reaches from 1.50 to 1.50"),
        ([(CLOSED, [[0, -10, 30], [0, -8, 33], [0, -8, 36]])], r"found one that reaches from 0.00 to 2.00"),
        ([(CLOSED, box(90)), (CLOSED, box(93))], r"contours in the image, found all 2 outside of it"),
        ([(CLOSED, box(33, (50, 60)))], r"contours in the image, found all 1 outside of it"),
        ([(CLOSED, [[np.nan, 0, 33], [1, 0, 33], [1, 1, 33]])], r"values that are not finite"),
    ],
)
def test_contours_that_are_none_of_this_series_are_named(tmp_path, contours, expected):
    with pytest.raises(VolumeError, match=expected) as error:
        draw(tmp_path, ("Liver", contours))
    assert f"{tmp_path / 'rs.dcm'}: structure 'Liver' (number 1)" in str(error.value)


def test_positions_rounded_to_a_tenth_of_a_millimetre_lie_in_their_slice(tmp_path):
    (found,) = draw(tmp_path, ("Liver", [(CLOSED, box(33.1))]))
    assert np.array_equal(found.mask, boxed(1))


def test_a_contour_through_centres_does_not_depend_on_rounding(tmp_path):
    """The left and upper edges are inside, the right and lower ones are not."""
    exact, noisy = box(33, (-4, 4), (-14, -9.5)), box(33.0, (-4.0004, 4.0004), (-14.0004, -9.4996))
    found = draw(tmp_path, ("exact", [(CLOSED, exact)]), ("noisy", [(CLOSED, noisy)]))
    assert np.array_equal(found[0].mask, found[1].mask)
    assert found[0].mask[1, 4:7, 3:7].all()
    assert found[0].mask.sum() == 12


def test_contours_on_sagittal_slices(tmp_path):
    """Rows run along y, columns against z, slices against x."""
    outline = [[-13, -19.5, 30.5], [-13, -15.5, 30.5], [-13, -15.5, 27.5], [-13, -19.5, 27.5]]
    (found,) = draw(tmp_path, ("Liver", [(CLOSED, outline)]), orientation=SAGITTAL)
    expected = np.zeros(VOXELS.shape, dtype=bool)
    expected[1, 0:2, 1:3] = True
    assert np.array_equal(found.mask, expected)


def test_names_keep_umlauts_and_repeated_or_missing_names_keep_their_numbers(tmp_path):
    series = slices(VOXELS)
    write_series(tmp_path, series)
    write_structures(tmp_path / "rs.dcm", series, [("Drüse li.", []), ("Drüse li.", []), ("", [])])
    (case,) = RTStructLayout().find(tmp_path)
    assert [(s.name, s.key) for s in case.structures] == [("Drüse li.", "1"), ("Drüse li.", "2"), ("ROI 3", "3")]
