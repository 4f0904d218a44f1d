"""The cases of a fold: unlabelled ones only train, and the log reports what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.training.annotated import AnnotatedDataset
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
    dataset: AnnotatedDataset, table: SourceTable, method: Method, learnt_from: Callable[[str], bool]
) -> Iterator[str]:
    """Yield a log line for each limitation of the training cases of a fold."""
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
    if dataset.changed:
        yield f"Values of labels that were not annotated are left out, in {shorten(dataset.changed)}."
