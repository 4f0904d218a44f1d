"""`conemos slices`: a 2D configuration whose patch holds every slice."""

from __future__ import annotations

import argparse
import json

from nnunetv2_conemos.datasets.folders import dataset_name, preprocessed_folder
from nnunetv2_conemos.datasets.plans import whole_slices
from nnunetv2_conemos.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="name or id of a preprocessed dataset")
    parser.add_argument("-c", dest="base", default="2d", metavar="CONFIGURATION", help="2D, preprocessed [%(default)s]")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="[%(default)s]")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="slices in a batch [%(default)s]")
    parser.add_argument("--name", metavar="CONFIGURATION", help="of the new configuration [that of -c and _slices]")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing configuration of that name")


def run(args: argparse.Namespace) -> None:
    name = dataset_name(args.dataset)
    folder = preprocessed_folder(name)
    file = folder and folder / f"{args.plans}.json"
    if file is None or not file.is_file():
        raise FileNotFoundError(f"{name} has no {args.plans}.json. Run nnUNetv2_plan_and_preprocess -d {name} -c 2d.")
    plans, new = json.loads(file.read_text()), args.name or f"{args.base}_slices"
    if args.base not in plans["configurations"]:
        raise ValueError(f"-c {args.base}: {file} has {', '.join(plans['configurations'])}.")
    entry = whole_slices(plans, args.base, args.batch)
    if plans["configurations"].get(new, entry) != entry and not args.overwrite:
        raise ValueError(f"{file} has another configuration {new}. Choose a --name, or say --overwrite.")
    plans["configurations"][new] = entry
    write_json(file, plans)
    height, width = entry["patch_size"]
    print(f"{file}: {new}, slices of {height} x {width}\nNext: nnUNetv2_train {name} {new} 0 -tr CMERTrainer")
