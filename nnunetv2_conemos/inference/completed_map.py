"""Join annotations and predictions into one label map: predictions where annotations leave the label open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.tags import ARRAY_AXIS, slices_by_label
from nnunetv2_conemos.datasets.label_maps import completion_table
from nnunetv2_conemos.datasets.volumes import RESAMPLE, read_label_map, require_same_grid
from nnunetv2_conemos.datasets.writer import CaseJob
from nnunetv2_conemos.errors import SourceError


def completed_map(
    table: SourceTable,
    job: CaseJob,
    missing: tuple[str, ...],
    predictions: Path,
    uncertain: float | None,
    ignore_value: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the completed label map [*S] of a case, and its geometry.

    `predictions` holds nnU-Net's map of the `missing` labels and, with `uncertain`, their probabilities. Raises
    SourceError for a value in the annotated map that belongs to no label.
    """
    labels = table.labels
    assert job.label is not None
    own = read_label_map(job.label, job.reader)
    mine = own.data.astype(np.intp)
    values = {0, labels.ignore or 0, *(value for its_values in labels.values for value in its_values)}
    if strange := set(np.unique(mine).tolist()) - values:
        raise SourceError(f"case '{job.case}': {job.label} holds the value {min(strange)}, which belongs to no label.")
    predicted = mine
    if missing:
        file = predictions / f"{job.case}{job.ending}"
        answer = read_label_map(file, job.reader)
        require_same_grid(own.grid, answer.grid, (job.label, file), RESAMPLE)
        predicted = answer.data.astype(np.intp)
    completed, left_open = np.zeros(mine.shape, dtype=np.uint16), np.zeros(mine.shape, dtype=bool)
    axis, groups = absent_labels(table, job.case, mine.shape)
    for absent, slices in groups.items():
        values_of, is_open = completion_table(labels, [*table.annotated(job.case), *absent])
        here = (*(slice(None),) * axis, slices)
        completed[here], left_open[here] = values_of[mine[here], predicted[here]], is_open[mine[here]]
    if missing and uncertain is not None:
        with np.load(predictions / f"{job.case}.npz") as saved:
            columns = [labels.names.index(name) for name in missing]
            unsure = is_unsure(saved["probabilities"], columns, labels.has_regions, uncertain)
        completed[unsure & left_open] = ignore_value
    return completed, own.properties


def absent_labels(
    table: SourceTable, case: str, shape: tuple[int, ...]
) -> tuple[int, dict[tuple[str, ...], list[int]]]:
    """Return the axis of the slices, and labels tagged as absent -> the slices they are absent from."""
    axis = ARRAY_AXIS[table.tag_axis]
    absent: list[tuple[str, ...]] = [()] * shape[axis]
    for name, (present, known) in slices_by_label(table.tags(case), shape[axis], case).items():
        absent = [(*names, name) if gone else names for names, gone in zip(absent, known & ~present, strict=True)]
    return axis, {names: [n for n, other in enumerate(absent) if other == names] for names in dict.fromkeys(absent)}


def is_unsure(saved: np.ndarray, missing: list[int], has_regions: bool, margin: float) -> Any:
    """Mark, boolean [*S], where a probability that nnU-Net saved lies within `margin` of one half.

    Region mode: sigmoids [K,*S]; any of the missing regions. Label mode: a softmax [K+1,*S]; the most likely of the
    missing labels against background, because that is what decides.
    """
    if has_regions:
        return (abs(saved[missing] - 0.5) <= margin).any(0)
    likeliest = saved[1:][missing].max(0)
    against_background = likeliest / np.maximum(likeliest + saved[0], np.finfo(saved.dtype).tiny)
    return abs(against_background - 0.5) <= margin
