"""`conemos compare`: compare evaluations of several models on the same cases, paired by case."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.evaluation.comparison import (
    Row,
    as_table,
    comparison,
    corrected,
    differences,
    named_folders,
    paired,
    read_evaluations,
)
from nnunetv2_conemos.evaluation.metrics import METRICS, SLICE_DICE
from nnunetv2_conemos.evaluation.plots import draw_differences
from nnunetv2_conemos.evaluation.significance import p_value, shown
from nnunetv2_conemos.files import require_absent, write_aside


def print_comparison(rows: Sequence[Row], metric: str) -> None:
    caption = "p: Wilcoxon's signed-rank test, corrected by Holm"
    view = Table("label", "model", title=f"{metric}: means and 95 % intervals over cases", caption=caption)
    view.box, view.pad_edge, view.collapse_padding = box.SIMPLE, False, True
    for column in ("mean", f"difference to {escape(rows[0].model)}", "p"):
        view.add_column(column, justify="right", no_wrap=True)
    for row, p in zip(rows, corrected(rows), strict=True):
        if row.against is None:
            view.add_section()
        label = escape(row.label) if row.against is None else ""
        difference = shown(row.against.difference, signed=True) if row.against else ""
        p_text = p_value(p) if row.against else ""
        view.add_row(label, escape(row.model), shown(row.mean), difference, p_text)
    Console().print(view)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    folders = "folders with an evaluation.csv; the first is what the others are compared with"
    parser.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER", help=folders)
    parser.add_argument("--metric", choices=(*METRICS, SLICE_DICE), default=METRICS[0], help="[%(default)s]")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="also write the table, as CSV")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw the differences of every case, as PNG")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")


def run(args: argparse.Namespace) -> None:
    folders = named_folders(args.folders)
    if len(folders) < 2:
        raise ValueError("name at least two folders, the first is what the others are compared with.")
    for file in filter(None, (args.output, args.figure)):
        require_absent(file, args.overwrite)
    arms = list(folders)
    scores, left_out = paired(read_evaluations(folders, args.metric), arms, args.metric)
    rows = comparison(scores, arms, args.metric)
    print_comparison(rows, args.metric)
    if left_out:
        print(f"{left_out} (case, label) pair(s) without a {args.metric} of all of them are left out.")
    if args.output:
        write_aside(args.output, lambda file: as_table(rows).to_csv(file, index=False))
        print(f"Written: {args.output}")
    if args.figure:
        write_aside(args.figure, lambda file: draw_differences(differences(scores, arms, args.metric), arms[0], file))
        print(f"Drawn: {args.figure}")
