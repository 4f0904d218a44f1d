"""Plan how a model labels the training cases of a dataset, for `complete` and `annotate_from_tags`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import read_raw_json
from nnunetv2_conemos.datasets.folders import named_or_path, raw_cases, source_table
from nnunetv2_conemos.datasets.writer import CaseJob, jobs_of
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.inference.model_folder import ModelFolder, read_model
from nnunetv2_conemos.inference.predictor import Inference

AT_ONCE = 16  # cases that are predicted before their maps are written


@dataclass(frozen=True)
class Labelling:
    """A model, its options of prediction (with `folds`), and the raw dataset with a job for each case."""

    model: ModelFolder
    inference: Inference
    raw: Path
    table: SourceTable
    dataset_json: dict[str, Any]
    jobs: dict[str, CaseJob]

    @property
    def ignore_value(self) -> int:
        """The ignore value of the dataset, or else the next free value."""
        labels = self.table.labels
        return 1 + max(v for values in labels.values for v in values) if labels.ignore is None else labels.ignore


def plan_labelling(model: Path | str, dataset: Path | str, inference: Inference | None) -> Labelling:
    """Read a model and a dataset (id, name or path); raises SourceError where their labels differ."""
    register_trainers()
    trained, how, raw = read_model(Path(model)), inference or Inference(), named_or_path(str(dataset))
    folds = trained.folds(how.checkpoint, how.folds)
    dataset_json, files = read_raw_json(raw), raw_cases(raw)
    table = source_table(raw, dataset_json, files)
    if table.labels != trained.labels:
        theirs, ours = trained.dataset_json["labels"], dataset_json["labels"]
        raise SourceError(f"the model has other labels than {raw.name}.\n  model: {theirs}\n  dataset: {ours}")
    jobs = {job.case: job for job in jobs_of(dataset_json, files)}
    return Labelling(trained, replace(how, folds=folds), raw, table, dataset_json, jobs)
