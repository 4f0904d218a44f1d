"""What the writers of DICOM share: a label map on the grid of a series, and who wrote the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

import nnunetv2_conemos
from nnunetv2_conemos.conversion.series import Series, read_series
from nnunetv2_conemos.datasets.geometry import reoriented, reoriented_array
from nnunetv2_conemos.datasets.volumes import read_label_map, require_same_grid
from nnunetv2_conemos.errors import ConemosError, InputError, VolumeError, brief
from nnunetv2_conemos.files import write_aside

PRODUCT = "nnunetv2_conemos"
VERSION = nnunetv2_conemos.__version__
Labels = Mapping[str, tuple[int, ...]]  # name -> values of the map
LONGEST = 64  # characters of a name in DICOM (VR LO)
ON_SERIES = "Write the label map for this series, or name the series that it belongs to."


def label_map_on(label_map: Path, series: Series) -> np.ndarray:
    """Read a label map [*S] that lies on the grid of a series, turned to its orientation; raises VolumeError."""
    own = read_label_map(label_map, SimpleITKIO())
    data, grid, orientation = own.data, own.grid, series.grid.orientation
    if len(grid.size) == 3 and grid.orientation != orientation:
        data, grid = reoriented_array(data, grid, orientation), reoriented(grid, orientation)
    require_same_grid(series.grid, grid, (series.files[0].parent, label_map), ON_SERIES)
    return data


def require_names(labels: Labels) -> None:
    """Raise InputError where there is no label, or one whose name is too long for DICOM."""
    long = [name for name in labels if len(name) > LONGEST]
    if long or not labels:
        found = f"'{long[0]}', {len(long[0])} characters" if long else "no label"
        raise InputError(f"expected names of labels of up to {LONGEST} characters, as DICOM has them; found {found}.")


def write_on_series(
    build: Callable[[np.ndarray, Series, Labels], Any],
    label_map: Path,
    series: Path | Iterable[Path],
    labels: Labels,
    target: Path,
) -> None:
    """Build a DICOM dataset of a label map [*S] and the series of which it is, and write it, whole or not at all.

    `series` is its folder or its files. Raises VolumeError where map and series do not lie on one grid, and for headers
    that lack what is needed, InputError for names that DICOM does not hold.
    """
    require_names(labels)
    found = read_series(series)
    data = label_map_on(label_map, found)
    with _building(target, found.files[0].parent):
        dataset = build(data, found, labels)
        write_aside(target, lambda file: dataset.save_as(file, enforce_file_format=True))


@contextmanager
def _building(target: Path, source: Path) -> Iterator[None]:
    try:
        with catch_warnings():
            simplefilter("ignore")  # names and dates that the series itself holds
            yield
    except (ConemosError, OSError):
        raise
    except Exception as error:  # pydicom and highdicom raise their own for what a header lacks
        raise VolumeError(
            f"{target} cannot be written for the series of {source}: {brief(error)}.",
            "Complete the headers of the series.",
        ) from None
