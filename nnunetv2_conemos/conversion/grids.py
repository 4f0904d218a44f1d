"""Bring a mask to the grid of its image: as it is, exactly where it lies on a part of that grid, or resampled.

3D Slicer saves segmentations on the part of the image's grid that they fill, and other programs in another order of
axes; no voxel changes there. Axis letters: ***S** space.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import SimpleITK

from nnunetv2_conemos.conversion.found import Drawn
from nnunetv2_conemos.datasets.geometry import APART, Grid, as_sitk, difference
from nnunetv2_conemos.errors import VolumeError

PART, RESAMPLED = "on a part of the image's grid, or in another order of axes", "resampled to the image's grid"


class Placed(NamedTuple):
    """A mask [*S] on the grid of its image, and how it came there (empty: it lay on that grid)."""

    mask: np.ndarray
    how: str


def place(drawn: Drawn, image: Grid, resample: bool, what: str) -> Placed:
    """Return a mask on the grid of its image.

    `resample` allows nearest neighbours where the grids differ. Raises VolumeError, starting with `what`, otherwise.
    """
    differs = difference(image, drawn.grid)
    if differs is None:
        return Placed(drawn.mask, "")
    part = part_of(drawn.grid, image)
    if part is not None:
        return Placed(pasted(drawn.mask, part, image), PART)
    if not resample:
        raise VolumeError(
            f"{what}: {differs.name} differs from that of the image: {differs}.",
            "Correct the file, or pass --resample (nearest neighbour).",
        )
    if image.affine is None or drawn.grid.affine is None:
        raise VolumeError(f"{what}: nothing says where its voxels lie.", "Save it in a format that does.")
    return Placed(resampled(drawn, image), RESAMPLED)


class Part(NamedTuple):
    """Where a grid lies within another: for each axis (x, y, z) of the other its own axis, sign and first index."""

    axes: tuple[int, ...]
    signs: tuple[int, ...]
    start: tuple[int, ...]


def part_of(own: Grid, image: Grid) -> Part | None:
    """Return where a grid lies within that of the image, voxel by voxel; None where it does not."""
    if own.affine is None or image.affine is None or len(own.size) != len(image.size):
        return None
    to_image = np.linalg.solve(image.affine, own.affine)
    turn, d = np.rint(to_image[:-1, :-1]), len(own.size)
    if not (abs(turn).sum(0) == 1).all() or not (abs(turn).sum(1) == 1).all():
        return None
    corners = np.array([*product(*((0, n - 1) for n in own.size))], dtype=float)
    there = corners @ to_image[:-1, :-1].T + to_image[:-1, -1]
    exact = corners @ turn.T + np.rint(to_image[:-1, -1])
    axes = tuple(int(axis) for axis in abs(turn).argmax(1))
    low, high = exact.min(0), exact.max(0)
    if abs(there - exact).max() >= APART or (low < 0).any() or (high >= image.size).any():
        return None
    return Part(axes, tuple(int(turn[axis, axes[axis]]) for axis in range(d)), tuple(map(int, low)))


def pasted(mask: np.ndarray, part: Part, image: Grid) -> np.ndarray:
    """Return a mask [*S] in its place within the grid of the image."""
    flat = mask[0] if mask.ndim > len(image.size) else mask  # one slice of a 2D image
    turned = flat.transpose().transpose(part.axes)[tuple(slice(None, None, sign) for sign in part.signs)]
    result = np.zeros(image.size, dtype=bool)
    result[tuple(slice(first, first + n) for first, n in zip(part.start, turned.shape, strict=True))] = turned
    result = np.ascontiguousarray(result.transpose())
    return result[None] if mask.ndim > len(image.size) else result


def resampled(drawn: Drawn, image: Grid) -> np.ndarray:
    """Return a mask [*S] resampled to the grid of the image, each voxel being that of its nearest neighbour."""
    reference = as_sitk(np.zeros(tuple(reversed(image.size)), dtype=np.uint8), image)
    own = as_sitk(drawn.mask.astype(np.uint8), drawn.grid)
    nearest = SimpleITK.Resample(own, reference, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 0)
    found = SimpleITK.GetArrayFromImage(nearest) > 0
    return found if found.ndim == drawn.mask.ndim else found[None]
