"""`conemos evaluate`: Dice, NSD and HD95 of predictions, on annotated labels only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from nnunetv2_conemos.annotations.tags import Axis
from nnunetv2_conemos.datasets.dataset_json import LabelMaps, read_checked
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.evaluation.evaluate import (
    FIGURE,
    SCORES,
    SUMMARY,
    evaluate,
    find_dataset_json,
    paired_files,
    who_annotated_what,
)
from nnunetv2_conemos.evaluation.metrics import summary_json
from nnunetv2_conemos.evaluation.plots import draw_dice, print_scores
from nnunetv2_conemos.files import write_aside, write_json
from nnunetv2_conemos.parallel import default_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gt_folder", type=Path, metavar="GT_FOLDER", help="label maps of the annotators")
    parser.add_argument("pred_folder", type=Path, metavar="PRED_FOLDER", help="predicted label maps, same file names")
    counts = parser.add_mutually_exclusive_group(required=True)
    counts.add_argument("-d", dest="dataset", metavar="DATASET", help="its `sources` say what counts: name, id or path")
    counts.add_argument("--annotated", type=Path, metavar="FILE", help="case -> labels, as for `conemos declare`")
    counts.add_argument("--complete", action="store_true", help="every case is annotated for every label")
    parser.add_argument("-djfile", type=Path, help="dataset.json with the labels, if not -d [the one in PRED_FOLDER]")
    parser.add_argument("-o", dest="output", type=Path, metavar="FOLDER", help="where results go [PRED_FOLDER]")
    parser.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")
    parser.add_argument("--tolerance", type=float, default=2.0, metavar="MM", help="of the NSD, in mm [%(default)s]")
    slices_help = "also the mean Dice of the slices along this axis that show a label"
    parser.add_argument("--slices", choices=get_args(Axis), help=slices_help)
    parser.add_argument("--chill", action="store_true", help="leave out cases without a prediction, and say so")
    parser.add_argument("--figure", action="store_true", help="also draw Dice per label and source")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier evaluation")


def run(args: argparse.Namespace) -> None:
    """Evaluate two folders: writes a long table and a summary, draws the figure if asked, prints a table."""
    dataset_file = find_dataset_json(args.dataset, args.djfile, args.pred_folder)
    dataset_json = read_checked(dataset_file, LabelMaps)
    output = args.output or args.pred_folder
    written = [output / name for name in (SCORES, SUMMARY, FIGURE)[: 3 if args.figure else 2]]
    if not args.overwrite and (existing := [str(file) for file in written if file.exists()]):
        raise FileExistsError(f"{shorten(existing)}: exists. Say --overwrite, or name another folder with -o.")
    files, unpredicted = paired_files(args.gt_folder, args.pred_folder, dataset_json["file_ending"], args.chill)
    table = who_annotated_what(args, dataset_json, [entry.case for entry in files])
    scores = evaluate(files, table, dataset_json, args.tolerance, args.processes, slices=args.slices)
    facts = {"reference": str(args.gt_folder), "prediction": str(args.pred_folder), "dataset_json": str(dataset_file)}
    summary = {**facts, "tolerance_mm": args.tolerance, "not_predicted": unpredicted}
    output.mkdir(parents=True, exist_ok=True)
    write_aside(written[0], lambda file: scores.to_csv(file, index=False))
    write_json(written[1], {**summary, **summary_json(scores, table.labels.names)})
    if args.figure:
        write_aside(written[2], lambda file: draw_dice(scores, table.labels.names, file))
    print_scores(scores, table.labels.names, args.tolerance)
    if unpredicted:
        print(f"Left out, no prediction: {len(unpredicted)} case(s), {shorten(unpredicted)}.")
    print("Written: " + ", ".join(map(str, written)))
