"""`conemos benchmark`: compare all methods and stock nnU-Net on one dataset."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.benchmark.cases import gather, plan_material
from nnunetv2_conemos.benchmark.config import ALL_ARMS, Recipe
from nnunetv2_conemos.benchmark.config_file import absolute, read_recipe
from nnunetv2_conemos.benchmark.report import REPORTS, write_report
from nnunetv2_conemos.benchmark.run import RECIPE, locked, make_room, run_all
from nnunetv2_conemos.benchmark.workspace import Workspace
from nnunetv2_conemos.datasets.folders import named_or_path
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.parallel import default_processes
from nnunetv2_conemos.subprocesses import own_environment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="RECIPE.yaml|DATASET", help="a recipe, or a partially labelled raw dataset")
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER", help="everything goes here")
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
    parser.add_argument("--report", action="store_true", help="train nothing: write the report of what is there")
    parser.epilog = "Started again, it goes on with what is missing."


def run(args: argparse.Namespace) -> int:
    register_trainers()
    folder = args.folder.resolve()
    if args.report and not (folder / RECIPE).is_file():
        raise FileNotFoundError(f"{folder} holds no {RECIPE}: there is no benchmark to report.")
    recipe = read_recipe(folder / RECIPE, {}) if args.report else queried(args)
    source = named_or_path(recipe.dataset).resolve()
    material = plan_material(recipe, source, args.processes)
    with locked(folder) as lock:
        whole = recipe if args.report else make_room(folder, recipe)
        environment = own_environment(folder, os.environ)
        place = Workspace(folder, whole, source, args.device, args.processes, environment, lock)
        test = gather(place, material)
        failed = [] if args.report else run_all(place, recipe.runs(), test)
        title, table = next(iter(write_report(place, test).items()))
    show(title, table)
    print("Written: " + ", ".join(str(folder / name) for name in ("runs.csv", "cases.csv", *REPORTS)))
    return 1 if failed else 0


def queried(args: argparse.Namespace) -> Recipe:
    """The recipe that is named, with what the command line says beside it."""
    options = ("arms", "seeds", "folds", "epochs", "configuration", "plans", "planner")
    changes: dict[str, Any] = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    if not args.what.endswith((".yaml", ".yml")):
        where = {"dataset": args.what}
        return read_recipe(None, {**absolute(where, Path.cwd()), **changes})
    if not Path(args.what).is_file():
        raise FileNotFoundError(f"there is no recipe {args.what}.")
    return read_recipe(Path(args.what), changes)


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table of the report."""
    view = Table("arm", *table.columns, title=title)
    for arm, row in table.iterrows():
        view.add_row(escape(str(arm)), *row)
    Console().print(view)
