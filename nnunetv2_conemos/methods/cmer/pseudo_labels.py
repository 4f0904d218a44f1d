"""Pseudo-labels from activations: label, background, or the ignore label where an activation is near its threshold.

Axis letters: **K** labels, ***S** space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.tags import ARRAY_AXIS, slices_by_label
from nnunetv2_conemos.datasets.label_maps import completion_table
from nnunetv2_conemos.datasets.writer import CaseJob
from nnunetv2_conemos.inference.labelling import Labelling
from nnunetv2_conemos.methods.cmer.network import SOFTNESS


@dataclass(frozen=True)
class Annotation(Labelling):
    """The tagged cases of a dataset, and the activations from which a voxel is annotated.

    A voxel is the label where its activation is `margin` above the threshold of the label (`thresholds` [K]), and
    background where it is below `background` and `margin` below the threshold.
    """

    thresholds: np.ndarray
    margin: float
    background: float

    @property
    def sure_background(self) -> np.ndarray:
        """The largest distance [K] of an activation to its threshold at which a voxel is background."""
        return np.minimum(self.background - self.thresholds, -self.margin)

    @property
    def tagged(self) -> list[CaseJob]:
        """The cases in which a label is tagged."""
        return [job for case, job in self.jobs.items() if self.table.tagged(case).any()]


def distances(probabilities: np.ndarray, has_regions: bool) -> np.ndarray:
    """Recover activation minus threshold, [K,*S], from the probabilities that nnU-Net saves."""
    tiny = np.finfo(np.float32).tiny
    p = np.maximum(probabilities.astype(np.float64), tiny)
    logits = np.log(p) - np.log(np.maximum(1 - p, tiny)) if has_regions else np.log(p[1:]) - np.log(p[:1])
    return SOFTNESS * logits


def pseudo_map(annotation: Annotation, case: str, probabilities: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the label map [*S]: annotated labels as in `own`, confident ones of the tagged labels, else ignore.

    A slice that is tagged as without a label has no voxel of it and none ignored for it. In a slice that is tagged as
    showing a label of which no voxel is confident, apparent background is ignored too, unless it is annotated.
    """
    table, labels = annotation.table, annotation.table.labels
    distance = distances(probabilities, labels.has_regions)
    axis = ARRAY_AXIS[table.tag_axis]
    shown = np.zeros((len(labels), own.shape[axis]), dtype=bool)  # slices that show a label, by their tags
    for name, (present, known) in slices_by_label(table.tags(case), own.shape[axis], case).items():
        k = labels.names.index(name)
        np.moveaxis(distance[k], axis, 0)[known & ~present] = -np.inf
        shown[k] = present & known
    tagged = np.flatnonzero(table.tagged(case))
    taken = annotated_voxels(annotation, case, own)
    left_open = completion_table(labels, table.annotated(case))[1][own]
    best = tagged[distance[tagged].argmax(0)]
    values = annotation.dataset_json.get("regions_class_order") or [v[0] for v in labels.values]
    result, unsure = np.zeros(own.shape, dtype=np.uint16), np.zeros(own.shape, dtype=bool)
    for k, value in enumerate(values):
        if table.known(case)[k]:
            result[np.isin(own, labels.values[k])] = value
        elif table.tagged(case)[k]:
            chosen = (distance[k] > annotation.margin) & (labels.has_regions | (best == k))
            result[chosen & ~taken] = value
            unsure |= (distance[k] <= annotation.margin) & (distance[k] >= annotation.sure_background[k])
            missed = shown[k] & ~np.moveaxis(chosen & ~taken, axis, 0).any((1, 2))
            np.moveaxis(unsure, axis, 0)[missed] |= np.moveaxis(left_open, axis, 0)[missed]
    doubtful = unsure & (labels.has_regions | (result == 0))
    result[(doubtful & ~taken) | (own == labels.ignore)] = annotation.ignore_value
    return result


def annotated_voxels(annotation: Annotation, case: str, own: np.ndarray) -> np.ndarray:
    """Mark the voxels that an annotator labelled, boolean [*S], where no other label can be; none for regions."""
    labels = annotation.table.labels
    values = annotation.table.allowed_values(case) - {0} if not labels.has_regions else set()
    return np.isin(own, list(values)) & annotation.table.known(case).any()


def found_slices(table: SourceTable, case: str, found: np.ndarray) -> np.ndarray:
    """Count the slices tagged as showing each label, and those of them where a label map [*S] does; integer [K,2]."""
    counts = np.zeros((len(table.labels), 2), dtype=int)
    in_slices = np.moveaxis(found, ARRAY_AXIS[table.tag_axis], 0)
    for name, (present, known) in slices_by_label(table.tags(case), len(in_slices), case).items():
        k = table.labels.names.index(name)
        there = np.isin(in_slices, table.labels.values[k]).any((1, 2))
        counts[k] = (present & known).sum(), (present & known & there).sum()
    return counts
