"""Grids: where the voxels of a file lie in space, and whether those of two files lie in the same places.

The grids are compared as nnU-Net's reader delivers them, so after its reorientation, if it reorients. Two grids are one
where none of their corners are half a voxel or more apart: the centre of each voxel then lies in the same voxel of the
other grid. (Headers round: a spacing of 0.781 for 0.78125 mm moves the last of 512 voxels by a sixth of a voxel.)

Axis letters: ***S** space, in the order of nnU-Net's arrays (z, y, x); sizes, spacings and affines are in the order of
the files (x, y, z).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnunetv2_conemos.errors import InputError

APART = 0.499  # voxels by which corners may be apart: less than half, whatever was rounded
ROUNDING = 1e-3  # relative, of spacings and direction cosines: decides which of them a message names
REORIENTING = (NibabelIOWithReorient, SimpleITKIOWithReorient)
NIBABEL = (NibabelIO, NibabelIOWithReorient)


class Grid(NamedTuple):
    """The grid of a file: `size` in voxels, `spacing` in mm, and `affine` [d+1,d+1], index (x, y, z) to mm in RAS+.

    `affine` is None, and `spacing` may be empty, where the file format does not hold them.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: np.ndarray | None = None

    @property
    def direction(self) -> tuple[float, ...]:
        """Direction cosines, row by row."""
        if self.affine is None:
            return ()
        edges = self.affine[:-1, :-1]
        return tuple((edges / np.linalg.norm(edges, axis=0)).ravel().tolist())

    @property
    def origin(self) -> tuple[float, ...]:
        """Position of the first voxel in mm."""
        return () if self.affine is None else tuple(self.affine[:-1, -1].tolist())

    @property
    def orientation(self) -> str:
        """The anatomical directions in which x, y and z grow, such as LPS; empty where that is unknown."""
        return "" if self.affine is None or len(self.affine) != 4 else "".join(map(str, aff2axcodes(self.affine)))


class Difference(NamedTuple):
    """What differs between two grids, its two values, and how many voxels the furthest corners are apart."""

    name: str
    expected: tuple[float, ...]
    found: tuple[float, ...]
    apart: float

    def __str__(self) -> str:
        moved = "" if self.name == "size" else f" (corners up to {self.apart:.3g} voxels apart)"
        return f"expected {in_words(self.expected)}, found {in_words(self.found)}{moved}"


def grid_of_array(shape: Sequence[int], properties: Mapping[str, Any]) -> Grid:
    """Return the grid of an array [*S] with the properties that nnU-Net's readers give."""
    own = properties.get("sitk_stuff")
    if own is not None:
        size = tuple(reversed(shape))[: len(own["spacing"])]
        return Grid(size, tuple(own["spacing"]), ras_affine(own["spacing"], own["origin"], own["direction"]))
    size, spacing = tuple(reversed(shape)), tuple(map(float, reversed(properties["spacing"])))
    own = properties.get("nibabel_stuff", {})
    affine = own.get("reoriented_affine", own.get("original_affine"))
    return Grid(size, spacing, None if affine is None else np.asarray(affine, dtype=float))


def ras_affine(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> np.ndarray:
    """Return the affine [d+1,d+1] in RAS+ of SimpleITK's geometry, whose world is LPS+."""
    d = len(spacing)
    affine = np.eye(d + 1)
    affine[:d, :d], affine[:d, d] = np.reshape(direction, (d, d)) * np.asarray(spacing), origin
    affine[:2] *= -1
    return affine


def grid_of_header(file: Path, reader: BaseReaderWriter) -> Grid | None:
    """Read only the header of a file: its grid as the reader would deliver it; None where the format holds none.

    Raises what the image library raises for a file that it cannot read.
    """
    if isinstance(reader, NIBABEL):
        image: Any = nibabel.load(file)
        grid = Grid(image.shape, tuple(map(float, image.header.get_zooms())), np.asarray(image.affine, dtype=float))
    elif isinstance(reader, SimpleITKIO):
        header = SimpleITK.ImageFileReader()
        header.SetFileName(str(file))
        header.ReadImageInformation()
        spacing = header.GetSpacing()
        affine = ras_affine(spacing, header.GetOrigin(), header.GetDirection())
        grid = Grid(header.GetSize(), spacing, affine)
    else:
        return None
    return reoriented(grid, "RAS") if isinstance(reader, REORIENTING) and len(grid.size) == 3 else grid


def reoriented(grid: Grid, orientation: str) -> Grid:
    """Return a grid with its axes in another order and direction."""
    assert grid.affine is not None
    change = ornt_transform(io_orientation(grid.affine), axcodes2ornt(orientation))
    affine = grid.affine @ inv_ornt_aff(change, grid.size)
    order = [int(axis) for axis in np.argsort(change[:, 0])]
    return Grid(tuple(grid.size[axis] for axis in order), tuple(grid.spacing[axis] for axis in order), affine)


def reoriented_array(array: np.ndarray, grid: Grid, orientation: str) -> np.ndarray:
    """Return an array [*S] with its axes in another order and direction; nothing is resampled."""
    assert grid.affine is not None
    change = ornt_transform(io_orientation(grid.affine), axcodes2ornt(orientation))
    return np.ascontiguousarray(apply_orientation(array.transpose(), change).transpose())


def difference(expected: Grid, found: Grid) -> Difference | None:
    """Return the first of size, spacing, direction and origin that differs; None where two grids are one."""
    if expected.size != found.size:
        return Difference("size", expected.size, found.size, 0)
    apart = corners_apart(expected, found)
    if apart < APART:
        return None
    for name in ("spacing", "direction"):
        ours, theirs = getattr(expected, name), getattr(found, name)
        if not np.allclose(ours, theirs, rtol=ROUNDING, atol=ROUNDING):
            return Difference(name, ours, theirs, apart)
    return Difference("origin", expected.origin, found.origin, apart)


def corners_apart(expected: Grid, found: Grid) -> float:
    """Return how many voxels the furthest corners of two grids of one size are apart."""
    corners = np.array([*product(*((0, n - 1) for n in expected.size))], dtype=float)
    if expected.affine is None or found.affine is None:
        if not (expected.spacing and found.spacing):
            return 0.0
        return float(abs(corners * (np.divide(found.spacing, expected.spacing) - 1)).max())
    corners = np.column_stack([corners, np.ones(len(corners))])
    moved = np.linalg.solve(expected.affine, found.affine @ corners.T).T
    return float(abs(moved - corners).max())


def in_words(numbers: Sequence[float]) -> str:
    """Return `(1, 0.5, 0.5)`."""
    return "(" + ", ".join(f"{number + 0.0:.6g}" for number in numbers) + ")"


def as_sitk(array: np.ndarray, grid: Grid) -> SimpleITK.Image:
    """Convert an array [*S] of nnU-Net's readers to an image; single slices without their own geometry become 2D.

    Raises InputError for axes that are not at right angles, which SimpleITK cannot represent.
    """
    flat = len(grid.size) == 2 or (grid.affine is None and len(array) == 1)
    image = SimpleITK.GetImageFromArray(array[0] if flat else array)
    if grid.affine is None:
        image.SetSpacing((grid.spacing or (1.0,) * 3)[: image.GetDimension()])
        return image
    turned = np.reshape(grid.direction, (len(grid.size),) * 2)
    if not np.allclose(turned.T @ turned, np.eye(len(grid.size)), atol=ROUNDING):
        raise InputError(
            "its axes are not at right angles, so it cannot be converted. Keep its file ending and reader, or resample."
        )
    turned[:2] *= -1
    image.SetSpacing(np.linalg.norm(grid.affine[:-1, :-1], axis=0).tolist())
    image.SetOrigin([-position if axis < 2 else position for axis, position in enumerate(grid.origin)])
    image.SetDirection(turned.ravel().tolist())
    return image
