"""Label the training cases of a dataset with a trained model, as `conemos complete` and `conemos cams` do."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_conemos import datasets
from nnunetv2_conemos.models import ModelFolder
from nnunetv2_conemos.raw_writer import CaseJob, jobs_of
from nnunetv2_conemos.sources import SourceError, SourceTable

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
    dataset_json, files = datasets.read_raw_json(raw), datasets.raw_cases(raw)
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


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="[all that were trained]")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="[%(default)s]")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("-device", default=device, choices=("cuda", "cpu", "mps"), help="[%(default)s]")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    parser.add_argument("-npp", type=int, default=3, help="processes for preprocessing [%(default)s]")
    parser.add_argument("-nps", type=int, default=3, help="processes for export; both 0: all in one [%(default)s]")


def inference_of(args: argparse.Namespace, model: ModelFolder) -> Inference:
    folds = model.folds(args.chk, args.folds)
    return Inference(folds, args.chk, args.device, not args.disable_tta, args.npp, args.nps)
