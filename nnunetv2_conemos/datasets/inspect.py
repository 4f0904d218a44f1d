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
from nnunetv2_conemos.datasets.geometry import first_difference, grid_of_header
from nnunetv2_conemos.datasets.writer import reader_of
from nnunetv2_conemos.errors import InputError, brief, shorten
from nnunetv2_conemos.parallel import in_processes


@dataclass(frozen=True)
class CaseContent:
    """The values of one label map, with what is wrong with the files of the case and what to do."""

    case: str
    values: frozenset[int]
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
    cases: Mapping[str, Mapping[str, Any]], dataset_json: Mapping[str, Any], processes: int
) -> list[CaseContent]:
    """Read every label map with nnU-Net's own reader, in `processes` processes, and the header of every image.

    Raises ValueError where nnU-Net has no reader for the images.
    """
    present = [file for entry in cases.values() for file in entry["images"][:1] if Path(file).is_file()]
    if not present:
        raise InputError("none of the images that dataset.json refers to exists. Restore them, or merge again.")
    reader = reader_of(dataset_json, Path(present[0]))
    channels = len(dataset_json["channel_names"])
    jobs = [
        (str(case), tuple(map(Path, files["images"])), Path(files["label"]), channels, reader)
        for case, files in cases.items()
    ]
    return in_processes(read_content, jobs, processes, "Reading label maps")


def read_content(
    case: str, images: Sequence[Path], label: Path, channels: int, reader: BaseReaderWriter
) -> CaseContent:
    """Read the values of one label map; a problem is returned, not raised."""
    nothing = frozenset[int]()
    if not label.is_file():
        return CaseContent(case, nothing, f"there is no {label}.", f"Write the file. {NO_MAP}")
    try:
        values = np.unique(reader.read_seg(str(label))[0])
    except Exception as error:  # each image library raises its own
        return CaseContent(case, nothing, f"{label} cannot be read: {brief(error)}", "Write the file again.")
    whole = np.isfinite(values) & (values == np.round(values))
    if not whole.all():
        strange = shorten(map(str, values[~whole]))
        return CaseContent(case, nothing, f"{label} holds values that are not labels: {strange}.", "Correct the map.")
    problem, remedy = image_problem(images, label, channels, reader)
    return CaseContent(case, frozenset(map(int, values)), problem, remedy)


def image_problem(images: Sequence[Path], label: Path, channels: int, reader: BaseReaderWriter) -> tuple[str, str]:
    """Return what is wrong with the images of a case, and what to do; empty where nothing is."""
    in_one_file = len(images) == 1 and images[0].suffix in NaturalImage2DIO.supported_file_endings  # colours
    if len(images) != channels and not in_one_file:
        found = shorten(map(str, images)) or "none"
        return f"expected {channels} channel(s), found {len(images)}: {found}.", "Add the files, or remove the case."
    gone = [str(file) for file in images if not file.is_file()]
    if gone:
        return f"there is no {shorten(gone)}.", "Restore the images, or merge again with --images copy."
    grids = {file: grid_of_header(file) for file in (*images, label)}
    for file in images:
        if grids[file] is None and (reason := unreadable(file, reader)):
            return f"{file} cannot be read: {reason}", "Restore the image."
    expected = grids[images[0]]
    for file, grid in grids.items():
        if expected and grid and (name := first_difference(expected, grid)):
            return (
                f"{name} differs: {images[0]} has {expected[name]}, {file} has {grid[name]}.",
                "Resample one of them onto the other; nnU-Net works voxel by voxel.",
            )
    return "", ""


def unreadable(file: Path, reader: BaseReaderWriter) -> str:
    """Return why nnU-Net's reader cannot read an image; empty where it can."""
    try:
        reader.read_images([str(file)])
    except Exception as error:  # each image library raises its own
        return brief(error)
    return ""
