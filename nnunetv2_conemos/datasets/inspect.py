"""What the files of raw cases hold: the values of each label map, where labels occur, and what is wrong with a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.folders import NO_MAP
from nnunetv2_conemos.datasets.geometry import REORIENTING, grid_of_header
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.datasets.volumes import (
    RESAMPLE,
    read_image,
    read_label_map,
    require_one_grid,
    require_same_grid,
)
from nnunetv2_conemos.errors import InputError, VolumeError, shorten
from nnunetv2_conemos.parallel import in_processes


@dataclass(frozen=True)
class CaseContent:
    """The values of one label map and the orientation of its image, with what is wrong with the files and what to do.

    `values` is empty where the map was not read. `orientation` is that of the files, such as LPS; empty where the
    format holds none, or where nnU-Net's reader reorients them all.
    """

    case: str
    values: frozenset[int]
    orientation: str = ""
    problem: str = ""
    remedy: str = ""


def count_occurrences(table: SourceTable, contents: Iterable[CaseContent]) -> np.ndarray:
    """Count the annotated cases whose label map shows a label, integer [sources, K]."""
    occurs = np.zeros_like(table.counts())
    rows = {source: row for row, source in enumerate(table.sources)}
    for content in contents:
        here = np.array([not content.values.isdisjoint(values) for values in table.labels.values])
        occurs[rows[table.source_of(content.case)]] += here & table.known(content.case)
    return occurs


def read_contents(
    cases: Mapping[str, Mapping[str, Any]], dataset_json: Mapping[str, Any], processes: int, quick: bool = False
) -> list[CaseContent]:
    """Read every image and label map with nnU-Net's own reader, in `processes` processes; `quick`: only headers.

    Raises InputError where nnU-Net has no reader for the images.
    """
    present = [file for entry in cases.values() for file in entry["images"][:1] if Path(file).is_file()]
    if not present:
        raise InputError("none of the images that dataset.json refers to exists. Restore them, or merge again.")
    reader = reader_of(dataset_json, Path(present[0]))
    channels = len(dataset_json["channel_names"])
    jobs = [
        (str(case), tuple(map(Path, files["images"])), Path(files["label"]), channels, reader, quick)
        for case, files in cases.items()
    ]
    return in_processes(read_content, jobs, processes, "Reading headers" if quick else "Reading images and label maps")


def read_content(
    case: str, images: Sequence[Path], label: Path, channels: int, reader: BaseReaderWriter, quick: bool = False
) -> CaseContent:
    """Read one case; a problem is returned, not raised."""
    values = frozenset[int]()
    try:
        if not label.is_file():
            raise VolumeError(f"there is no {label}.", f"Write the file. {NO_MAP}")
        own = None if quick else read_label_map(label, reader)
        values = frozenset(map(int, np.unique(own.data))) if own else values
        require_files(images, channels, reader)
        if own is None:
            require_one_grid([*images, label], reader)
            grid = grid_of_header(images[0], reader)
        else:
            grid = read_image(images, reader, channels).grid
            require_same_grid(grid, own.grid, (images[0], label), RESAMPLE)
        return CaseContent(case, values, grid.orientation if grid and not isinstance(reader, REORIENTING) else "")
    except VolumeError as error:
        return CaseContent(case, values, "", error.what, error.remedy)


def require_files(images: Sequence[Path], channels: int, reader: BaseReaderWriter) -> None:
    """Raise VolumeError where a case has another number of files than channels, or lacks one of them."""
    in_one_file = len(images) == 1 and isinstance(reader, NaturalImage2DIO)  # colours
    if len(images) != channels and not in_one_file:
        found = shorten(map(str, images)) or "none"
        raise VolumeError(
            f"expected {channels} channel(s), found {len(images)}: {found}.", "Add the files, or remove the case."
        )
    gone = [str(file) for file in images if not file.is_file()]
    if gone:
        raise VolumeError(f"there is no {shorten(gone)}.", "Restore the images, or merge again with --images copy.")
