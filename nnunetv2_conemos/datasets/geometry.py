"""Grids: where the voxels of a file lie (size, spacing, origin, direction), and whether two files lie on the same one.

Axis letters: ***S** space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_conemos.errors import InputError

Grid = dict[str, tuple[float, ...]]  # size, spacing and, where the format has them, origin and direction
TOLERANCE = 1e-3  # relative and absolute: file formats round


def grid_of_header(file: Path) -> Grid | None:
    """Read the grid of a file from its header; None where the header holds none, or cannot be read."""
    if not file.name.endswith((*SimpleITKIO.supported_file_endings, ".nii")):
        return None
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    kinds = ("Size", "Spacing", "Origin", "Direction")
    return {kind.lower(): tuple(getattr(reader, f"Get{kind}")()) for kind in kinds}


def grid_of_array(shape: Sequence[int], properties: Mapping[str, Any]) -> Grid:
    """Return the grid of an array [*S] and its properties, as nnU-Net's readers give them: size and spacing in their
    order of axes, origin and direction where the reader is one of SimpleITK's.
    """
    grid: Grid = {"size": tuple(shape), "spacing": tuple(properties["spacing"])}
    own = properties.get("sitk_stuff", {})
    return grid | {name: tuple(own[name]) for name in ("origin", "direction") if name in own}


def first_difference(expected: Grid, found: Grid) -> str | None:
    """Return the first of size, spacing, origin and direction in which two grids differ; None where they are one."""
    for name, wanted in expected.items():
        if len(wanted) != len(found[name]) or not np.allclose(wanted, found[name], rtol=TOLERANCE, atol=TOLERANCE):
            return name
    return None


def in_words(numbers: Sequence[float]) -> str:
    """Return `(1, 0.5, 0.5)`."""
    return "(" + ", ".join(f"{number:.6g}" for number in numbers) + ")"


def as_sitk(array: np.ndarray, properties: Mapping[str, Any]) -> SimpleITK.Image:
    """Convert an array [*S] of nnU-Net's readers to an image; single slices without their own geometry become 2D.

    Raises ValueError for geometry that only the reader understands.
    """
    stuff = properties.get("sitk_stuff")
    if "nibabel_stuff" in properties:
        raise InputError(
            "files that nnU-Net reads with nibabel cannot be converted without losing their geometry. Convert them to "
            "the file ending of the other datasets first, or merge with the --file-ending that they have."
        )
    flat = len(stuff["spacing"]) == 2 if stuff else len(array) == 1
    image = SimpleITK.GetImageFromArray(array[0] if flat else array)
    if stuff is None:
        image.SetSpacing([float(s) for s in properties["spacing"]][::-1][: image.GetDimension()])
    else:
        image.SetSpacing(stuff["spacing"])
        image.SetOrigin(stuff["origin"])
        image.SetDirection(stuff["direction"])
    return image
