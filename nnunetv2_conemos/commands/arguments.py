"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import get_args

from nnunetv2_conemos.datasets.writer import Images
from nnunetv2_conemos.inference.predictor import Inference
from nnunetv2_conemos.inference.streaming import LABELS_AT_ONCE
from nnunetv2_conemos.parallel import default_processes


def add_copy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that write a copy of a dataset."""
    parser.add_argument("-o", dest="output", required=True, metavar="DATASET", help="new dataset: Dataset100_Name")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument(
        "--images", choices=get_args(Images), default="reference", help="how images are kept [%(default)s]"
    )
    parser.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset of that name")


def add_inference_arguments(parser: argparse.ArgumentParser, folds: str = "all that were trained") -> None:
    """Add nnU-Net's own options for prediction; `folds`: which are the default, in words."""
    default = Inference()
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help=f"[{folds}]")
    parser.add_argument("-chk", default=default.checkpoint, help="checkpoint of each fold [%(default)s]")
    parser.add_argument("-device", default=default.device, choices=("cuda", "cpu", "mps"), help="[%(default)s]")
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, less accurate")
    npp_help = "processes for preprocessing [%(default)s]"
    parser.add_argument("-npp", type=int, default=default.preprocessing, help=npp_help)
    nps_help = "threads for export, or processes for probabilities; both 0: all in one process [%(default)s]"
    parser.add_argument("-nps", type=int, default=default.export, help=nps_help)


def inference_of(args: argparse.Namespace, labels_at_once: int | None = None, skip_absent: bool = False) -> Inference:
    """Return the options of `add_inference_arguments` as a record."""
    how = args.folds, args.chk, args.device, not args.disable_tta, args.npp, args.nps
    return Inference(*how, labels_at_once=labels_at_once, skip_absent=skip_absent)


def add_many_labels_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for predictions of many labels."""
    at_once_help = f"labels whose maps are in memory together [{LABELS_AT_ONCE}, or all where one pass computes them]"
    parser.add_argument("--labels-at-once", type=int, metavar="N", help=at_once_help)
    skip_help = "faster with many labels: give up a label early in tiles where coarse logits say that it is absent"
    parser.add_argument("--skip-absent", action="store_true", help=skip_help)
