"""`conemos complete`: fill in the labels that are missing in each training case."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.commands.arguments import add_inference_arguments, add_many_labels_arguments, inference_of
from nnunetv2_conemos.inference.completion import Completed, complete


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", dest="model", type=Path, required=True, metavar="FOLDER", help="trained model folder")
    parser.add_argument("-d", dest="dataset", required=True, help="partially labelled raw dataset: id, name or path")
    parser.add_argument("-o", dest="output", required=True, metavar="DATASET", help="new dataset: Dataset101_Name")
    uncertain_help = "write the ignore label where a probability lies within P of one half"
    parser.add_argument("--uncertain", type=float, metavar="P", help=uncertain_help)
    add_inference_arguments(parser)
    add_many_labels_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset and start over")


def run(args: argparse.Namespace) -> None:
    completed = complete(
        args.model,
        args.dataset,
        args.output,
        uncertain=args.uncertain,
        inference=inference_of(args, args.labels_at_once, args.skip_absent),
        overwrite=args.overwrite,
    )
    Console(soft_wrap=True).print(table_of(completed))
    print(f"Written: {completed.folder}\nNext: nnUNetv2_plan_and_preprocess -d {completed.folder.name}")


def table_of(completed: Completed) -> Table:
    """Return a table of how many cases each label was annotated in, and how many it was filled in for."""
    table = Table(title=f"{completed.folder.name}: {completed.cases} cases", caption="cases per label")
    for column in ("label", "annotated", "filled in"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, missing in completed.filled_in.items():
        table.add_row(escape(label), str(completed.cases - missing), str(missing))
    return table
