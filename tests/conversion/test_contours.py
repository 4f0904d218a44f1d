"""Contours to voxels and back, against an independent even-odd count in exact fractions and against scikit-image."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.measure import points_in_poly

from nnunetv2_conemos.conversion.contours import rasterise, signed_area, trace, without_collinear

ROWS, COLUMNS = 7, 9
QUARTERS = st.integers(-8, 44).map(lambda number: number / 4)  # exact in floating point
POLYGONS = st.lists(st.tuples(QUARTERS, QUARTERS), min_size=3, max_size=8).map(np.array)
SQUARE = np.array([[1.5, 0.5], [7.5, 0.5], [7.5, 5.5], [1.5, 5.5]])
HOLE = np.array([[3.5, 2.5], [5.5, 2.5], [5.5, 4.5], [3.5, 4.5]])


def inside(x: int, y: int, contours) -> bool:
    """Whether an odd number of edges crosses the ray from a centre to the left, the centre itself included."""
    crossings = 0
    for contour in contours:
        points = [tuple(map(Fraction, point)) for point in contour.tolist()]
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if min(y0, y1) <= y < max(y0, y1):
                crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
    return crossings % 2 == 1


def brute_force(contours) -> np.ndarray:
    return np.array([[inside(x, y, contours) for x in range(COLUMNS)] for y in range(ROWS)])


@settings(max_examples=60)
@given(st.lists(POLYGONS, min_size=1, max_size=3))
def test_rasterise_equals_an_exact_count(contours):
    """Any polygons: crossing themselves, with corners on centres of pixels, reaching out of the image."""
    assert np.array_equal(rasterise(contours, ROWS, COLUMNS), brute_force(contours))


def test_rasterise_equals_scikit_image_on_a_polygon_without_ties():
    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(40), np.arange(30)), axis=-1).reshape(-1, 2)
    for _ in range(20):
        polygon = rng.uniform(-5, 45, (12, 2))
        expected = points_in_poly(centres, polygon).reshape(30, 40)
        assert np.array_equal(rasterise([polygon], 30, 40), expected)


def test_a_hole_is_a_contour_of_its_own_or_at_the_end_of_a_channel_without_width():
    expected = np.zeros((ROWS, COLUMNS), dtype=bool)
    expected[1:6, 2:8] = True
    expected[3:5, 4:6] = False
    assert np.array_equal(rasterise([SQUARE, HOLE], ROWS, COLUMNS), expected)
    keyhole = np.concatenate([SQUARE, SQUARE[:1], HOLE, HOLE[:1]])
    assert np.array_equal(rasterise([keyhole], ROWS, COLUMNS), expected)


def test_an_island_in_a_hole_is_inside():
    island = np.array([[3.8, 2.8], [4.2, 2.8], [4.2, 3.2], [3.8, 3.2]])
    assert rasterise([SQUARE, HOLE, island], ROWS, COLUMNS)[3, 4]


def test_structures_that_share_an_edge_share_no_pixel_and_leave_none_between_them():
    """Edges through centres of pixels."""
    left = np.array([[1.0, 1.0], [4.0, 1.0], [4.0, 5.0], [1.0, 5.0]])
    right = np.array([[4.0, 1.0], [7.0, 1.0], [7.0, 5.0], [4.0, 5.0]])
    both = rasterise([left], ROWS, COLUMNS).astype(int) + rasterise([right], ROWS, COLUMNS)
    assert np.array_equal(np.argwhere(both), [(y, x) for y in range(1, 5) for x in range(1, 7)])
    assert both.max() == 1


@settings(max_examples=100)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_tracing_and_rasterising_gives_the_same_mask(mask):
    contours = trace(mask)
    found = rasterise(contours, *mask.shape) if contours else np.zeros_like(mask)
    assert np.array_equal(found, mask)


def test_contours_survive_rounding():
    rng = np.random.default_rng(1)
    mask = rng.random((30, 30)) < 0.5
    moved = [contour + rng.uniform(-0.2, 0.2, contour.shape) for contour in trace(mask)]
    assert np.array_equal(rasterise(moved, 30, 30), mask)


def test_holes_run_the_other_way_round():
    ring = np.zeros((7, 7), dtype=bool)
    ring[1:6, 1:6], ring[3, 3] = True, False
    assert sorted(np.sign([signed_area(contour) for contour in trace(ring)])) == [-1, 1]


def test_points_in_the_middle_of_straight_lines_are_left_out():
    line = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 2.0]])
    assert without_collinear(line).tolist() == [[0.0, 0.0], [2.0, 0.0], [2.0, 2.0]]
    assert signed_area(without_collinear(line)) == pytest.approx(2)
