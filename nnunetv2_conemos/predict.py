"""`conemos predict`: nnUNetv2_predict (or, with -m, nnUNetv2_predict_from_modelfolder) for some of the labels.

Every argument but --labels and --modality is nnU-Net's and handed on as it is. Plain nnU-Net commands make the same
choices through the environment variables CONEMOS_LABELS and CONEMOS_MODALITY.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import predict_entry_point, predict_entry_point_modelfolder
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunetv2_conemos import env
from nnunetv2_conemos.method import LABELS_VARIABLE, MODALITY_VARIABLE, UNKNOWN
from nnunetv2_conemos.models import ModelFolder, read_model

HANDS_ON = True  # arguments that are not ours are nnU-Net's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="compute only these [all that were taught]")
    parser.add_argument("--modality", help="of the images, for methods that are told it [the only one, or unknown]")
    parser.epilog = (
        "All other arguments are those of nnUNetv2_predict, or of nnUNetv2_predict_from_modelfolder with -m."
    )


def run(args: argparse.Namespace) -> None:
    with_folder = "-m" in args.handed_on
    if args.labels:
        refuse_unknown_labels(read_model(model_folder(args.handed_on)), args.labels)
    if args.modality:
        refuse_unknown_modality(read_model(model_folder(args.handed_on)), args.modality)
    env.find_trainers()
    with asked(args.labels, args.modality), command_line(["conemos predict", *args.handed_on]):
        (predict_entry_point_modelfolder if with_folder else predict_entry_point)()


def model_folder(arguments: Sequence[str]) -> Path:
    """The model folder that nnU-Net's arguments name."""
    given = dict(pairwise(arguments))
    if "-m" in given:
        return Path(given["-m"])
    if not ("-d" in given and "-c" in given):
        raise ValueError("say which model: -d DATASET -c CONFIGURATION -tr TRAINER, or -m MODEL_FOLDER.")
    trainer, plans = given.get("-tr", "nnUNetTrainer"), given.get("-p", "nnUNetPlans")
    return Path(get_output_folder(given["-d"], trainer, plans, given["-c"]))


def refuse_unknown_labels(model: ModelFolder, labels: Sequence[str]) -> None:
    """Raises SourceError for a name that is no label of the model, ValueError for one that nobody annotated."""
    for label in labels:
        model.labels.index(label, "--labels")
        if label in model.untaught:
            raise ValueError(f"--labels: '{label}' was annotated in no training case, so it is never predicted.")


def refuse_unknown_modality(model: ModelFolder, modality: str) -> None:
    """Raises ValueError for a name that the model does not know, and for models that look at no modality."""
    known = model.modalities
    if modality not in (*known, UNKNOWN) or not known:
        raise ValueError(f"--modality: this model knows {', '.join(known) or 'no modality'}, found '{modality}'.")


@contextmanager
def asked(labels: Sequence[str] | None, modality: str | None = None) -> Iterator[None]:
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
