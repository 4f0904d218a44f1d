"""`conemos split`: a copy of a dataset with the folds of a semi-supervised setting."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.commands.arguments import add_copy_arguments
from nnunetv2_conemos.datasets.folders import named_or_path, new_dataset_folder
from nnunetv2_conemos.datasets.split import notes, split
from nnunetv2_conemos.datasets.splits import Fold
from nnunetv2_conemos.datasets.ssl_settings import Roles


def role_table(table: SourceTable, roles: Roles) -> Table:
    """Domain x role: how many cases."""
    parts = {"labelled": roles.labelled, "validate only": roles.validation, "unlabelled": roles.unlabelled}
    parts["left out"] = frozenset(table.cases) - roles.cases
    shown = {name: cases for name, cases in parts.items() if cases}
    view = Table(title="Cases")
    view.add_column("domain")
    for name in shown:
        view.add_column(name, justify="right")
    for domain in (*table.domains, None) if table.domains else ():
        numbers = [sum(table.domain_of(case) == domain for case in cases) for cases in shown.values()]
        if any(numbers):
            view.add_row(escape(domain or "-"), *map(str, numbers))
    view.add_row("all", *(str(len(cases)) for cases in shown.values()))
    return view


def fold_table(table: SourceTable, roles: Roles, folds: Sequence[Fold]) -> Table:
    """What each fold trains and validates on, and the domain it does not see."""
    view = Table(title="Folds")
    for name in ("fold", *(["held out"] if roles.held_out else []), "labelled", "unlabelled", "validation"):
        view.add_column(name, justify="left" if name == "held out" else "right")
    for number, fold in enumerate(folds):
        labelled = sum(bool(table.known(case).any()) for case in fold["train"])
        unseen = [escape(roles.held_out[number])] if roles.held_out else []
        unlabelled = len(fold["train"]) - labelled
        view.add_row(str(number), *unseen, str(labelled), str(unlabelled), str(len(fold["val"])))
    return view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="raw dataset: id, name or path")
    settings = "ssl: few labels; uda: labels of other domains; semidg: few labels in several domains, another is tested"
    parser.add_argument("--setting", required=True, choices=("ssl", "uda", "semidg"), help=settings)
    labelled = "annotated cases that stay so, of each domain for semidg: a number, or a fraction below 1 [uda: all]"
    parser.add_argument("--labelled", metavar="N", help=labelled)
    validation = "so many further annotated cases (uda: of the target domain) only validate [labelled ones do, in turn]"
    parser.add_argument("--validation", metavar="N", help=validation)
    parser.add_argument("--source-domain", nargs="+", default=[], metavar="NAME", help="uda [all that are no target]")
    parser.add_argument("--target-domain", nargs="+", default=[], metavar="NAME", help="uda: trains unlabelled")
    parser.add_argument(
        "--test-domain", nargs="+", default=[], metavar="NAME", help="semidg: unseen, a fold each [all]"
    )
    folds = (
        "labelled cases are dealt to so many folds [5, or as many as cases]; semidg: one of them for each test domain"
    )
    parser.add_argument("--folds", type=int, metavar="N", help=folds)
    add_copy_arguments(parser)


def run(args: argparse.Namespace) -> None:
    target = new_dataset_folder(args.output)
    original, roles, copy, folds = split(named_or_path(args.dataset), target, args)
    console = Console(soft_wrap=True)
    console.print(role_table(original.table, roles))
    console.print(fold_table(copy.table, roles, folds))
    for note in notes(args, original, copy.table, folds):
        print(note)
    print(f"Written: {target}\nNext: nnUNetv2_plan_and_preprocess -d {target.name}")
