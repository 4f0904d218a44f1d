"""Label the training cases of a dataset with a trained model, as `conemos complete` and `conemos cams` do."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import read_raw_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.writer import CaseJob, jobs_of
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.inference.model_folder import ModelFolder
from nnunetv2_conemos.training.plans_facts import LABELS_VARIABLE, MODALITY_VARIABLE, UNKNOWN

AT_ONCE = 16  # cases between two moments at which everything predicted so far is safe


@dataclass(frozen=True)
class Inference:
    """How to predict: nnU-Net's own choices."""

    folds: list[str]
    checkpoint: str
    device: str
    mirroring: bool
    preprocessing: int
    export: int


@dataclass(frozen=True)
class Labelling:
    """A dataset whose cases a model is to label."""

    model: ModelFolder
    inference: Inference
    raw: Path
    table: SourceTable
    dataset_json: dict[str, Any]
    jobs: dict[str, CaseJob]

    @property
    def ignore_value(self) -> int:
        """That of the dataset, or the next free value."""
        labels = self.table.labels
        return 1 + max(v for values in labels.values for v in values) if labels.ignore is None else labels.ignore


def plan_labelling(model: ModelFolder, inference: Inference, raw: Path) -> Labelling:
    """Raises SourceError where model and dataset have other labels."""
    dataset_json, files = read_raw_json(raw), raw_cases(raw)
    table = SourceTable.from_dataset_json(dataset_json, files)
    if table.labels != model.labels:
        theirs, ours = model.dataset_json["labels"], dataset_json["labels"]
        raise SourceError(f"the model has other labels than {raw.name}.\n  model: {theirs}\n  dataset: {ours}")
    jobs = {job.case: job for job in jobs_of(dataset_json, files)}
    return Labelling(model, inference, raw, table, dataset_json, jobs)


def predict_files(
    predictor: nnUNetPredictor, how: Inference, images: list[list[str]], outputs: list[str], probabilities: bool
) -> None:
    """Write the prediction of each list of channels to a file name without ending, with probabilities if wanted."""
    if how.preprocessing == how.export == 0:
        predictor.predict_from_files_sequential(images, outputs, probabilities)
    else:
        predictor.predict_from_files(images, outputs, probabilities, True, how.preprocessing, how.export)


def require_known_labels(model: ModelFolder, labels: Sequence[str]) -> None:
    """Raises SourceError for a name that is no label of the model, ValueError for one that nobody annotated."""
    for label in labels:
        model.labels.index(label, "--labels")
        if label in model.never_annotated:
            raise ValueError(f"--labels: '{label}' was annotated in no training case, so it is never predicted.")


def require_known_modality(model: ModelFolder, modality: str) -> None:
    """Raises ValueError for a name that the model does not know, and for models that look at no modality."""
    known = model.modalities
    if modality not in (*known, UNKNOWN) or not known:
        raise ValueError(f"--modality: this model knows {', '.join(known) or 'no modality'}, found '{modality}'.")


@contextmanager
def queried(labels: Sequence[str] | None, modality: str | None = None) -> Iterator[None]:
    """Networks that are built within compute only these labels, on images of this modality; None changes nothing."""
    chosen = {LABELS_VARIABLE: None if labels is None else ",".join(labels), MODALITY_VARIABLE: modality}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ |= {name: value for name, value in chosen.items() if value is not None}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


@contextmanager
def command_line(words: list[str]) -> Iterator[None]:
    """nnU-Net's entry functions read sys.argv."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before
