"""`conemos declare`: write `sources` into dataset.json from a table case -> annotated labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from rich.console import Console

from nnunetv2_conemos.annotations.overview import source_table
from nnunetv2_conemos.annotations.table_file import TRAITS
from nnunetv2_conemos.datasets.declare import Missing, declare
from nnunetv2_conemos.datasets.folders import NO_MAP
from nnunetv2_conemos.errors import shorten


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="name or id of a raw dataset")
    table_help = 'JSON {"case": ["label", ...]} or CSV with the header case,labels (labels separated by ";")'
    table_help += f" and, optionally, {', '.join(TRAITS)}"
    parser.add_argument("--annotated", type=Path, required=True, metavar="FILE", help=table_help)
    missing_help = "what cases that FILE does not name are annotated for [an error]"
    parser.add_argument("--missing", choices=get_args(Missing), help=missing_help)
    parser.add_argument("--overwrite", action="store_true", help="replace `sources` that are already there")


def run(args: argparse.Namespace) -> None:
    console = Console(soft_wrap=True)
    table, files, without_map = declare(args.dataset, args.annotated, missing=args.missing, overwrite=args.overwrite)
    console.print(source_table(table))
    for file in files:
        console.print(f"`sources` written to {file}", markup=False, highlight=False)
    if without_map:
        console.print(f"{len(without_map)} case(s) have no label map: {shorten(without_map)}. {NO_MAP}", markup=False)
