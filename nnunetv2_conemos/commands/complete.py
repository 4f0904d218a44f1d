"""`conemos complete`: fill in the labels that are missing in each training case."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.commands.arguments import add_inference_arguments, inference_of
from nnunetv2_conemos.datasets.folders import named_or_path, new_dataset_folder
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.inference.completion import complete, plan_completion
from nnunetv2_conemos.inference.model_folder import read_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", dest="model", type=Path, required=True, metavar="FOLDER", help="trained model folder")
    parser.add_argument("-d", dest="dataset", required=True, help="partially labelled raw dataset: id, name or path")
    parser.add_argument("-o", dest="output", required=True, metavar="DATASET", help="new dataset: Dataset101_Name")
    uncertain_help = "write the ignore label where a probability lies within P of one half"
    parser.add_argument("--uncertain", type=float, metavar="P", help=uncertain_help)
    add_inference_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset, begin anew")


def run(args: argparse.Namespace) -> None:
    if args.uncertain is not None and not 0 < args.uncertain < 0.5:
        raise ValueError(f"--uncertain {args.uncertain:g}: expected a number between 0 and 0.5.")
    register_trainers()
    model = read_model(args.model)
    completion = plan_completion(model, inference_of(args, model), named_or_path(args.dataset), args.uncertain)
    target = new_dataset_folder(args.output)
    filled_in = complete(completion, target, args.overwrite)
    table = Table(title=f"{target.name}: {len(completion.jobs)} cases", caption="cases per label")
    for column in ("label", "annotated", "filled in"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for label, missing in filled_in.items():
        table.add_row(escape(label), str(len(completion.jobs) - missing), str(missing))
    Console(soft_wrap=True).print(table)
    print(f"Written: {target}\nNext: nnUNetv2_plan_and_preprocess -d {target.name}")
