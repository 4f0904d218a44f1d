"""`conemos predict`: nnUNetv2_predict, or with -m nnUNetv2_predict_from_modelfolder, for some of the labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from nnunetv2.inference.predict_from_raw_data import predict_entry_point, predict_entry_point_modelfolder
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.inference.model_folder import read_model
from nnunetv2_conemos.inference.predictor import command_line, queried, require_known_labels, require_known_modality

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
        require_known_labels(read_model(model_folder(args.handed_on)), args.labels)
    if args.modality:
        require_known_modality(read_model(model_folder(args.handed_on)), args.modality)
    register_trainers()
    with queried(args.labels, args.modality), command_line(["conemos predict", *args.handed_on]):
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
