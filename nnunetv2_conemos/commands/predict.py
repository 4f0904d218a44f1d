"""`conemos predict`: nnUNetv2_predict, or with -m nnUNetv2_predict_from_modelfolder, for some of the labels."""

from __future__ import annotations

import argparse

from nnunetv2_conemos.commands.arguments import SKIP_ABSENT_HELP
from nnunetv2_conemos.inference.predictor import predict_as_nnunet

HANDS_ON = True  # other arguments are passed on to nnU-Net


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="compute only these [all that were annotated]")
    parser.add_argument("--modality", help="of the images, for methods conditioned on it [the only one, or unknown]")
    parser.add_argument("--skip-absent", action="store_true", help=SKIP_ABSENT_HELP)
    parser.epilog = (
        "All other arguments are those of nnUNetv2_predict, or of nnUNetv2_predict_from_modelfolder with -m."
    )


def run(args: argparse.Namespace) -> None:
    predict_as_nnunet(args.handed_on, labels=args.labels, modality=args.modality, skip_absent=args.skip_absent)
