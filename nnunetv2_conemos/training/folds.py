"""The cases of a fold: unlabelled ones only train, and the log reports what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.splits import Parts, only_training, stratified_split
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.training.annotated import AnnotatedDataset
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.preconditions import require_split_of_raw


def ready_split(file: Path, table: SourceTable) -> bool:
    """Write a split where a preprocessed dataset has none; return whether one was written.

    Raises SourceError where the raw dataset has one that was not copied.
    """
    if file.is_file():
        return False
    require_split_of_raw(file, table)
    write_json(file, stratified_split(table))
    return True


def supervised_parts(
    train: Sequence[Any], validation: Sequence[Any], has_supervision: Callable[[str], bool], table: SourceTable
) -> Parts:
    """Return training and validation cases such that all of the latter are supervised."""
    fold = {"train": [str(case) for case in train], "val": [str(case) for case in validation]}
    return only_training(fold, has_supervision, table.patient_of)


def what_was_moved(parts: Parts) -> Iterator[str]:
    """Yield a log line about the validation cases that do not validate."""
    if parts.moved:
        yield f"Unlabelled validation cases are used for training only: {shorten(parts.moved)}."
    if parts.left_out:
        yield f"Unlabelled validation cases are left out, since their patients validate: {shorten(parts.left_out)}."


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
