"""`conemos convert`: label maps and predictions in the forms that clinics read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from nnunetv2_conemos.conversion.convert import Form, convert
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.parallel import default_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("maps", metavar="FOLDER", help="predictions, or a raw dataset: id, name or path")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FOLDER", help="a folder for each case")
    parser.add_argument("--as", dest="form", choices=get_args(Form), required=True)
    dataset_help = "raw dataset whose labels the predictions have [dataset.json beside them]"
    parser.add_argument("--dataset", metavar="DATASET", help=dataset_help)
    origins_help = "origins.csv of an import, or the table of --anonymise [that of the dataset]"
    parser.add_argument("--origins", type=Path, metavar="FILE", help=origins_help)
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="labels to write [all that were annotated]")
    parser.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder of that name")


def run(args: argparse.Namespace) -> None:
    converted = convert(
        args.maps,
        args.output,
        form=args.form,
        dataset=args.dataset,
        origins=args.origins,
        labels=args.labels,
        processes=args.processes,
        overwrite=args.overwrite,
    )
    print(f"Written: {converted.folder}, {converted.cases} case(s), {shorten(converted.labels, 20)}")
