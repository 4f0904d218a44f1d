"""`conemos split`: make a copy of a dataset with the folds of a semi-supervised setting."""

from __future__ import annotations

import argparse
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.commands.arguments import add_copy_arguments
from nnunetv2_conemos.datasets.split import Setting, SplitReport, split


def role_table(report: SplitReport) -> Table:
    """Return a table of the number of cases per domain and role."""
    table, roles = report.original, report.roles
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


def fold_table(report: SplitReport) -> Table:
    """Return a table of what each fold trains and validates on, and of the domain that it does not see."""
    table, roles, view = report.table, report.roles, Table(title="Folds")
    for name in ("fold", *(["held out"] if roles.held_out else []), "labelled", "unlabelled", "validation"):
        view.add_column(name, justify="left" if name == "held out" else "right")
    for number, fold in enumerate(report.folds):
        labelled = sum(bool(table.known(case).any()) for case in fold["train"])
        unseen = [escape(roles.held_out[number])] if roles.held_out else []
        unlabelled = len(fold["train"]) - labelled
        view.add_row(str(number), *unseen, str(labelled), str(unlabelled), str(len(fold["val"])))
    return view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="raw dataset: id, name or path")
    settings = "ssl: few labels; uda: labels of other domains; semidg: few labels in several domains, another is tested"
    parser.add_argument("--setting", required=True, choices=get_args(Setting), help=settings)
    labelled = "annotated cases that stay labelled (semidg: in each domain): a number, or a fraction below 1 [uda: all]"
    parser.add_argument("--labelled", metavar="N", help=labelled)
    validation = "further annotated cases (uda: of the target domain) used only to validate [labelled ones, in turn]"
    parser.add_argument("--validation", metavar="N", help=validation)
    parser.add_argument("--source-domain", nargs="+", default=[], metavar="NAME", help="uda [all but the targets]")
    parser.add_argument("--target-domain", nargs="+", default=[], metavar="NAME", help="uda: used without labels")
    parser.add_argument(
        "--test-domain", nargs="+", default=[], metavar="NAME", help="semidg: unseen, one fold each [all]"
    )
    folds = "number of folds of the labelled cases [5, or as many as cases]; semidg: one of them for each test domain"
    parser.add_argument("--folds", type=int, metavar="N", help=folds)
    add_copy_arguments(parser)


def run(args: argparse.Namespace) -> None:
    report = split(
        args.dataset,
        args.output,
        setting=args.setting,
        labelled=args.labelled,
        validation=args.validation,
        source_domains=args.source_domain,
        target_domains=args.target_domain,
        test_domains=args.test_domain,
        folds=args.folds,
        seed=args.seed,
        images=args.images,
        processes=args.processes,
        overwrite=args.overwrite,
    )
    console = Console(soft_wrap=True)
    console.print(role_table(report))
    console.print(fold_table(report))
    for note in report.notes:
        print(note)
    print(f"Written: {report.folder}\nNext: nnUNetv2_plan_and_preprocess -d {report.folder.name}")
