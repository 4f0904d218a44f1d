"""`conemos predict`: the arguments of nnUNetv2_predict, or of its _from_modelfolder with -m, and a choice of labels."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from nnunetv2_conemos.commands.arguments import add_inference_arguments, add_many_labels_arguments, inference_of
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.inference.model_folder import model_folder
from nnunetv2_conemos.inference.predictor import Inference, predict

FOLDS = ("0", "1", "2", "3", "4")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", dest="images", type=Path, required=True, metavar="FOLDER", help="images CASE_0000...")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FOLDER", help="of the predictions")
    add_model_arguments(parser)
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="compute only these [all that were annotated]")
    parser.add_argument("--modality", help="of the images, for methods conditioned on it [the only one, or unknown]")
    add_many_labels_arguments(parser)
    add_inference_arguments(parser, " ".join(FOLDS))
    npp, nps = of_environment("nnUNet_npp", 3), of_environment("nnUNet_nps", 3)
    parser.set_defaults(folds=FOLDS, device="cuda", npp=npp, nps=nps)  # as in nnU-Net
    step_size = Inference.step_size
    parser.add_argument("-step_size", type=float, default=step_size, metavar="S", help="[%(default)s] patches")
    not_on_device_help = "sum up tiles in memory, where that of the GPU does not suffice"
    parser.add_argument("--not_on_device", action="store_true", help=not_on_device_help)
    probabilities_help = "also write the probabilities of all labels, which need memory for all their maps"
    parser.add_argument("--save_probabilities", action="store_true", help=probabilities_help)
    parser.add_argument("--continue_prediction", "--c", action="store_true", help="skip cases that were predicted")
    parser.add_argument("-prev_stage_predictions", type=Path, metavar="FOLDER", help="of a stock cascade's first stage")
    parser.add_argument("-num_parts", type=int, default=1, metavar="N", help="split the cases into N parts [1]")
    parser.add_argument("-part_id", type=int, default=0, metavar="I", help="predict this one, 0 to N-1 [0]")
    parser.add_argument("--verbose", action="store_true", help="let nnU-Net say more")
    parser.add_argument("--disable_progress_bar", action="store_true", help="for logs of batch jobs")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a model."""
    parser.add_argument("-m", dest="model", type=Path, metavar="FOLDER", help="trained model folder, or -d and -c:")
    parser.add_argument("-d", dest="dataset", help="dataset that the model was trained on: id or name")
    parser.add_argument("-c", dest="configuration", help="its configuration")
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainer", help="its trainer [%(default)s]")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="its plans [%(default)s]")


def of_environment(variable: str, default: int) -> int:
    """Return nnU-Net's default in an environment variable, where that holds a number."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def run(args: argparse.Namespace) -> None:
    if args.save_probabilities:
        print("--save_probabilities: memory grows with the number of labels.", file=sys.stderr)
    how = replace(
        inference_of(args, args.labels_at_once, args.skip_absent),
        step_size=args.step_size,
        on_device=not args.not_on_device,
        verbose=args.verbose,
        progress_bars=not args.disable_progress_bar,
    )
    written = predict(
        model_of(args),
        args.images,
        args.output,
        labels=args.labels,
        modality=args.modality,
        inference=how,
        probabilities=args.save_probabilities,
        keep_existing=args.continue_prediction,
        previous_stage=args.prev_stage_predictions,
        part=args.part_id,
        parts=args.num_parts,
    )
    print(f"Written: {len(written)} label map(s) in {args.output}")


def model_of(args: argparse.Namespace) -> Path:
    """Return the model folder; raises ValueError where it is named twice or not at all."""
    if (args.model is None) == (args.dataset is None) or (args.model is None) != (args.configuration is not None):
        raise InputError("name the model: -d DATASET -c CONFIGURATION -tr TRAINER, or -m MODEL_FOLDER.")
    return args.model or model_folder(args.dataset, args.trainer, args.plans, args.configuration)
