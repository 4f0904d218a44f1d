"""Scores of predicted label maps, on annotated (case, label) pairs only.

Choices that papers often leave unstated:

- A label that is annotated in a case but absent from both maps is not counted: status `both empty`.
- A label that is absent from one of the two maps has Dice and NSD 0. Its HD95 is undefined; the number of such pairs is
  reported.
- Voxels of nnU-Net's ignore label are background in both maps.

Axis letters: **K** labels, ***S** space, with `spacing` in the order of the array's axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt16
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from scipy.ndimage import find_objects

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.tags import ARRAY_AXIS, Axis
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.datasets.volumes import naming, read_label_map, require_same_grid
from nnunetv2_conemos.errors import InputError, SourceError, shorten
from nnunetv2_conemos.evaluation.metrics import pair_scores, slice_scores
from nnunetv2_conemos.parallel import in_processes

LabelMap = UInt16[np.ndarray, "*S"]


class CaseFiles(NamedTuple):
    """The two label maps of a case."""

    case: str
    reference: Path
    prediction: Path


def score_cases(
    files: Sequence[CaseFiles],
    table: SourceTable,
    dataset_json: Mapping[str, Any],
    tolerance: float | None = 2.0,
    processes: int = 1,
    title: str = "Evaluating",
    slices: Axis | None = None,
) -> pd.DataFrame:
    """Score every annotated pair: a long table case, source, label, dice, nsd, hd95_mm, status.

    `tolerance` of the NSD, in mm; None measures Dice alone, which is many times faster. `slices` along this axis
    add two columns, see `slice_scores`. Raises SourceError where nothing is annotated, ValueError or OSError for files
    that cannot be compared.
    """
    reader = reader_of(dataset_json, files[0].reference)
    jobs = [(entry, reader, table.labels, table.known(entry.case), tolerance, slices) for entry in files]
    if not any(known.any() for _, _, _, known, *_ in jobs):
        raise SourceError(f"none of the {len(files)} cases is annotated for any label: nothing to evaluate.")
    rows = [row for rows in in_processes(score_case, jobs, processes, title) for row in rows]
    scores = pd.DataFrame(rows)
    scores.insert(1, "source", scores["case"].map(table.source_of))
    return scores


def score_case(
    files: CaseFiles,
    reader: BaseReaderWriter,
    labels: LabelSpace,
    known: Bool[np.ndarray, " K"],
    tolerance: float | None,
    slices: Axis | None = None,
) -> list[dict[str, Any]]:
    """Score every annotated label of a case; see `score_cases`."""
    return score_maps(files, *read_pair(files, reader), labels, known, tolerance, slices)


def score_maps(
    files: CaseFiles,
    reference: LabelMap,
    prediction: LabelMap,
    spacing: tuple[float, ...],
    labels: LabelSpace,
    known: Bool[np.ndarray, " K"],
    tolerance: float | None,
    slices: Axis | None = None,
) -> list[dict[str, Any]]:
    """Score two label maps [*S] of a case, which `files` name; both are changed."""
    if slices and reference.ndim != len(ARRAY_AXIS):
        raise InputError(f"case '{files.case}': --slices {slices} needs volumes, found a single slice.")
    boxes = [occupied(files.reference, reference, labels), occupied(files.prediction, prediction, labels)]
    if labels.ignore is not None:
        ignored = reference == labels.ignore
        reference[ignored] = prediction[ignored] = 0
    rows = []
    for name, values in [(labels.names[k], labels.values[k]) for k in np.flatnonzero(known)]:
        box = union([found[value] for found in boxes for value in values if value in found])
        masks = np.isin(reference[box], values), np.isin(prediction[box], values)
        scores = pair_scores(*masks, spacing, tolerance)
        if slices:
            scores |= slice_scores(*masks, ARRAY_AXIS[slices])
        rows.append({"case": files.case, "label": name, **scores})
    return rows


def read_pair(files: CaseFiles, reader: BaseReaderWriter) -> tuple[LabelMap, LabelMap, tuple[float, ...]]:
    """Read both label maps [*S] and their spacing in mm; a volume of a single slice becomes 2D.

    Raises VolumeError that names the case where a map cannot be used, or where the two do not lie on one grid.
    """
    with naming(files.case):
        reference, prediction = (read_label_map(file, reader) for file in (files.reference, files.prediction))
        require_same_grid(
            reference.grid,
            prediction.grid,
            (files.reference, files.prediction),
            "Predict the image that was annotated, or resample to its grid.",
        )
    shape, spacing = reference.data.shape, tuple(map(float, reference.properties["spacing"]))
    if 1 in shape:  # in 3D, every voxel of a single slice would be surface
        axis = shape.index(1)
        return reference.data.squeeze(axis), prediction.data.squeeze(axis), spacing[:axis] + spacing[axis + 1 :]
    return reference.data, prediction.data, spacing


def occupied(file: Path, voxels: LabelMap, labels: LabelSpace) -> dict[int, tuple[slice, ...]]:
    """Find the bounding box of every value in a label map; raises SourceError for a value that no label has."""
    boxes = {value: box for value, box in enumerate(find_objects(voxels), 1) if box is not None}
    foreign = sorted(boxes.keys() - {labels.ignore, *(value for values in labels.values for value in values)})
    if foreign:
        raise SourceError(
            f"{file}: expected the label values of {', '.join(labels.names)}, found {shorten(map(str, foreign))}. "
            "Does this dataset.json belong to the map?"
        )
    return boxes


def union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Return the smallest box around all boxes; without any box, the whole array."""
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
