"""`conemos benchmark`: compare methods and stock nnU-Net on one dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.benchmark.config import ALL_ARMS, Recipe
from nnunetv2_conemos.benchmark.config_file import absolute, read_recipe
from nnunetv2_conemos.benchmark.run import recipe_in, run_benchmark
from nnunetv2_conemos.errors import MissingFileError
from nnunetv2_conemos.parallel import default_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RECIPE.yaml|DATASET", help="a recipe, or a partially labelled raw dataset")
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER", help="folder for all outputs")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=f"some of {', '.join(ALL_ARMS)} [all]")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="[0 1]")
    parser.add_argument("--folds", nargs="+", metavar="N", help="or `all` [0]")
    parser.add_argument("--epochs", nargs="+", type=int, metavar="N", help="of 250 steps [250]")
    parser.add_argument("-c", dest="configuration", help="plans configuration [3d_fullres]")
    parser.add_argument("-p", dest="plans", help="plans [nnUNetPlans]")
    parser.add_argument("-pl", dest="planner", help="planner [ExperimentPlanner]")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("-device", default=device, choices=("cuda", "cpu", "mps"), help="[%(default)s]")
    parser.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")
    parser.add_argument("--report", action="store_true", help="train nothing: write the report of what FOLDER holds")
    parser.epilog = "Run again with the same FOLDER, it continues with what is missing."


def run(args: argparse.Namespace) -> int:
    result = run_benchmark(
        recipe_in(args.folder) if args.report else recipe_of(args),
        args.folder,
        device=args.device,
        processes=args.processes,
        report_only=args.report,
    )
    print_table(*next(iter(result.tables.items())))
    print("Written: " + ", ".join(map(str, result.files)))
    return 1 if result.failed else 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Return the recipe named on the command line, changed by the options given there."""
    options = ("arms", "seeds", "folds", "epochs", "configuration", "plans", "planner")
    changes: dict[str, Any] = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    if not args.what.endswith((".yaml", ".yml")):
        return read_recipe(None, {**absolute({"dataset": args.what}, Path.cwd()), **changes})
    if not Path(args.what).is_file():
        raise MissingFileError(f"there is no recipe {args.what}.")
    return read_recipe(Path(args.what), changes)


def print_table(title: str, table: pd.DataFrame) -> None:
    """Print a table of the report."""
    view = Table("arm", *map(escape, map(str, table.columns)), title=escape(title))
    for arm, row in table.iterrows():
        view.add_row(*map(escape, map(str, (arm, *row))))
    Console().print(view)
