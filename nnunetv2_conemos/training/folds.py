"""The cases of a fold: unlabelled ones only train, and the log reports what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.training.method import Method


def supervised_parts(
    train: Sequence[Any], validation: Sequence[Any], has_supervision: Callable[[str], bool]
) -> tuple[list[str], list[str], list[str]]:
    """Return training and validation cases such that all of the latter are supervised, and those that were moved."""
    moved = [str(case) for case in validation if not has_supervision(case)]
    training = [str(case) for case in train]
    kept = [str(case) for case in validation if case not in moved]
    return [*training, *(case for case in moved if case not in training)], kept, moved


def what_is_left_out(
    dataset: Any, table: SourceTable, method: Method, learnt_from: Callable[[str], bool]
) -> Iterator[str]:
    """Yield a log line for each limitation of the training cases of a fold (`dataset`: nnU-Net's)."""
    cases = list(dataset.identifiers)
    never_annotated = table.never_annotated(cases, method.tags)
    if never_annotated:
        yield f"No training case of this fold is annotated for {shorten(never_annotated)}: not learnt."
    never_drawn = [case for case in cases if not learnt_from(case)]
    if never_drawn:
        yield f"Not annotated for anything, so never sampled: {shorten(never_drawn)}."
    unknown = [case for case in cases if not table.modality_of(case)]
    if unknown and method.modalities:
        yield f"`modality` is not declared, so it is taken as unknown: {shorten(unknown)}."
    unannotated = cases_with_unannotated_values(dataset, table)
    if unannotated:
        yield f"Values of labels that were not annotated are left out, in {shorten(unannotated)}."


def cases_with_unannotated_values(dataset: Any, table: SourceTable) -> list[str]:
    """List the cases whose maps hold labels that they are not annotated for; such voxels never count as background."""
    found = []
    for case in dataset.identifiers:
        allowed = table.allowed_values(case) | {-1}
        locations = dataset.load_case(case)[3]["class_locations"]
        if any(len(where) and allowed.isdisjoint(np.atleast_1d(key)) for key, where in locations.items()):
            found.append(case)
    return found
