"""Masks come to the grid of their image: exactly, or by nearest neighbours where that is asked for."""

import numpy as np
import pytest

from nnunetv2_conemos.conversion.found import Drawn
from nnunetv2_conemos.conversion.grids import PART, RESAMPLED, place
from nnunetv2_conemos.datasets.geometry import Grid, reoriented, reoriented_array
from nnunetv2_conemos.errors import VolumeError

SIZE = (7, 6, 5)
GRID = Grid(SIZE, (1.0, 1.0, 2.0), np.diag([-1.0, -1.0, 2.0, 1.0]))


def ball() -> np.ndarray:
    mask = np.zeros(SIZE[::-1], dtype=bool)
    mask[1:3, 2:5, 3:6] = True
    return mask


def crop(mask: np.ndarray, start: tuple[int, int, int], size: tuple[int, int, int]) -> Drawn:
    affine = GRID.affine.copy()
    affine[:3, 3] = (GRID.affine @ [*start, 1])[:3]
    box = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
    return Drawn(mask.transpose()[box].transpose(), Grid(size, GRID.spacing, affine))


def test_a_mask_on_the_grid_stays_as_it_is():
    placed = place(Drawn(ball(), GRID), GRID, False, "m")
    assert placed.how == ""
    assert (placed.mask == ball()).all()


def test_a_mask_on_a_part_of_the_grid_is_put_in_its_place():
    placed = place(crop(ball(), (2, 1, 1), (5, 4, 3)), GRID, False, "m")
    assert placed.how == PART
    assert (placed.mask == ball()).all()


@pytest.mark.parametrize("orientation", ["RAS", "SAR", "LIP", "PRS"])
def test_a_mask_in_another_order_of_axes_is_turned(orientation):
    own = Drawn(reoriented_array(ball(), GRID, orientation), reoriented(GRID, orientation))
    placed = place(own, GRID, False, "m")
    assert placed.how == PART
    assert (placed.mask == ball()).all()


def test_a_mask_that_reaches_out_of_the_image_is_refused_or_resampled():
    moved = GRID._replace(affine=GRID.affine @ np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    with pytest.raises(VolumeError, match=r"m: origin differs .*--resample"):
        place(Drawn(ball(), moved), GRID, False, "m")
    placed = place(Drawn(ball(), moved), GRID, True, "m")
    assert placed.how == RESAMPLED
    assert (placed.mask[:, :, 2:] == ball()[:, :, :-2]).all()


def test_another_spacing_is_refused_or_resampled():
    coarse = Grid((7, 6, 3), (1.0, 1.0, 4.0), np.diag([-1.0, -1.0, 4.0, 1.0]))
    mask = np.zeros((3, 6, 7), dtype=bool)
    mask[1] = True
    with pytest.raises(VolumeError, match="size differs"):
        place(Drawn(mask, coarse), GRID, False, "m")
    placed = place(Drawn(mask, coarse), GRID, True, "m").mask
    assert placed[2].all()  # 4 mm
    assert not placed[[0, 4]].any()
