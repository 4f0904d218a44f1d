"""`conemos slices DATASET`: a 2D configuration whose patch holds every slice, as methods for image tags need it."""

from __future__ import annotations

import argparse
import json

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.datasets import dataset_name, preprocessed_folder, write_json
from nnunetv2_conemos.refusals import preprocessed_data

MULTIPLE = 8  # of both sides: three poolings


def whole_slices(plans: dict, base: str, batch: int) -> dict:
    """An entry for `configurations` of the plans, on the data preprocessed for `base`.

    Raises ValueError where `base` is no 2D configuration, FileNotFoundError where it was not preprocessed.
    """
    planned = PlansManager(plans).get_configuration(base)
    if len(planned.patch_size) != 2:
        raise ValueError(f"configuration {base} is 3D. Name a 2D one with -c.")
    folder = preprocessed_data(plans, base)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist. Run nnUNetv2_preprocess for configuration {base}.")
    cases = infer_dataset_class(str(folder))(str(folder))
    largest = np.max([np.shape(cases.load_case(case)[0])[-2:] for case in cases.identifiers], axis=0)
    patch = (np.ceil(largest / MULTIPLE) * MULTIPLE).astype(int).tolist()
    return {"inherits_from": base, "patch_size": patch, "batch_size": batch}


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
