"""`conemos hide`: make a partially labelled copy of a completely labelled dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from rich.console import Console

from nnunetv2_conemos.annotations.overview import source_table
from nnunetv2_conemos.annotations.tags import Axis
from nnunetv2_conemos.commands.arguments import add_copy_arguments
from nnunetv2_conemos.datasets.hide import hide
from nnunetv2_conemos.datasets.partial_copy import COMPLETE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="completely labelled raw dataset: id, name or path")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--per-case", type=int, metavar="N", help="each case keeps N labels, each label equally often")
    how.add_argument("--groups", type=Path, metavar="FILE", help='JSON {"group": ["label", ...]}; cases divided evenly')
    how.add_argument("--fraction", type=float, metavar="P", help="each label stays in this fraction of the cases")
    parser.add_argument("--unlabelled", type=float, metavar="P", help="this fraction of the cases keeps no label")
    parser.add_argument(
        "--tags", choices=get_args(Axis), help="hidden labels stay known as tags of slices along this axis"
    )
    add_copy_arguments(parser)


def run(args: argparse.Namespace) -> None:
    report = hide(
        args.dataset,
        args.output,
        per_case=args.per_case,
        groups=args.groups,
        fraction=args.fraction,
        unlabelled=args.unlabelled,
        tags=args.tags,
        seed=args.seed,
        images=args.images,
        processes=args.processes,
        overwrite=args.overwrite,
    )
    Console(soft_wrap=True).print(source_table(report.table))
    print(f"Written: {report.folder}, with the complete maps in {report.folder / COMPLETE}")
    for note in report.notes:
        print(note)
