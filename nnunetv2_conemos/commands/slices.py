"""`conemos slices`: a 2D configuration whose patch holds every slice."""

from __future__ import annotations

import argparse
import shlex

from nnunetv2_conemos.datasets.plans import add_slices_configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="name or id of a preprocessed dataset")
    parser.add_argument("-c", dest="base", default="2d", metavar="CONFIGURATION", help="preprocessed, 2D [%(default)s]")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", metavar="PLANS", help="[%(default)s]")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="slices in a batch [%(default)s]")
    parser.add_argument("--name", metavar="CONFIGURATION", help="of the new configuration [that of -c plus _slices]")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing configuration of that name")


def run(args: argparse.Namespace) -> None:
    made = add_slices_configuration(
        args.dataset,
        base=args.base,
        plans=args.plans,
        batch=args.batch,
        name=args.name,
        overwrite=args.overwrite,
    )
    height, width = made.patch_size
    print(f"{made.file}: {made.name}, slices of {height} x {width}")
    print(f"Next: nnUNetv2_train {made.dataset} {shlex.quote(made.name)} 0 -tr CMERTrainer")
