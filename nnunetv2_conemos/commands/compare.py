"""`conemos compare`: compare evaluations of several models on the same cases, paired by case."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nnunetv2_conemos.errors import InputError, shorten
from nnunetv2_conemos.evaluation.comparison import compare
from nnunetv2_conemos.evaluation.metrics import METRICS, SLICE_DICE
from nnunetv2_conemos.evaluation.tables import comparison_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folders = "folders with an evaluation.csv; the others are compared with the first"
    parser.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER", help=folders)
    parser.add_argument("--metric", choices=(*METRICS, SLICE_DICE), default=METRICS[0], help="[%(default)s]")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="also write the table, as CSV")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the differences of every case, as PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")


def run(args: argparse.Namespace) -> None:
    comparison = compare(
        named_folders(args.folders),
        metric=args.metric,
        output=args.output,
        figure=args.figure,
        overwrite=args.overwrite,
    )
    Console().print(comparison_table(comparison))
    if comparison.left_out:
        print(f"{comparison.left_out} (case, label) pair(s) without a {args.metric} from every model are left out.")
    for note in comparison.notes:
        print(f"Note: {note}")
    for file in comparison.files:
        print(f"{'Drawn' if file == args.figure else 'Written'}: {file}")


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Parse FOLDER (named after its last part) or NAME=FOLDER to name -> folder; raises ValueError for equal names."""
    plain = [word for word in words if "=" not in word or Path(word).is_dir()]
    pairs = [(Path(word).resolve().name, word) if word in plain else tuple(word.split("=", 1)) for word in words]
    twice = sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1})
    if twice:
        raise InputError(f"several folders are called {shorten(twice)}. Name them: film=FOLDER stock=FOLDER.")
    return {name: Path(folder) for name, folder in pairs}
