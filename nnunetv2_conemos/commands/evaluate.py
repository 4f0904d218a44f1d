"""`conemos evaluate`: Dice, NSD and HD95 of predictions, on annotated labels only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from rich.console import Console

from nnunetv2_conemos.annotations.tags import Axis
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.evaluation.evaluate import evaluate
from nnunetv2_conemos.evaluation.tables import scores_table
from nnunetv2_conemos.parallel import default_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gt_folder", type=Path, metavar="GT_FOLDER", help="annotated label maps")
    parser.add_argument(
        "pred_folder", type=Path, metavar="PRED_FOLDER", help="predicted label maps of the same file names"
    )
    counts = parser.add_mutually_exclusive_group(required=True)
    counts.add_argument(
        "-d", dest="dataset", metavar="DATASET", help="its `sources` say which labels count: name, id or path"
    )
    counts.add_argument("--annotated", type=Path, metavar="FILE", help="case -> labels, as for `conemos declare`")
    counts.add_argument("--complete", action="store_true", help="every case is annotated for every label")
    parser.add_argument("-djfile", type=Path, help="dataset.json with the labels, without -d [the one in PRED_FOLDER]")
    parser.add_argument("-o", dest="output", type=Path, metavar="FOLDER", help="folder for the results [PRED_FOLDER]")
    parser.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")
    parser.add_argument("--tolerance", type=float, default=2.0, metavar="MM", help="of the NSD, in mm [%(default)s]")
    slices_help = "also the mean Dice of the slices along this axis that show a label"
    parser.add_argument("--slices", choices=get_args(Axis), help=slices_help)
    parser.add_argument("--chill", action="store_true", help="leave out cases without a prediction, and say so")
    parser.add_argument("--figure", action="store_true", help="also draw Dice per label and source")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier evaluation")


def run(args: argparse.Namespace) -> None:
    evaluation = evaluate(
        args.gt_folder,
        args.pred_folder,
        dataset=args.dataset,
        annotated=args.annotated,
        complete=args.complete,
        dataset_json=args.djfile,
        output=args.output,
        tolerance=args.tolerance,
        slices=args.slices,
        chill=args.chill,
        figure=args.figure,
        overwrite=args.overwrite,
        processes=args.processes,
    )
    Console().print(scores_table(evaluation))
    if evaluation.not_predicted:
        left_out = evaluation.not_predicted
        print(f"Left out, no prediction: {len(left_out)} case(s), {shorten(left_out)}.")
    for note in evaluation.notes:
        print(f"Note: {note}")
    print("Written: " + ", ".join(map(str, evaluation.files)))
