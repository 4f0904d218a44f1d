"""`conemos check`: find everything that would spoil a training and can be seen before it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from nnunetv2_conemos.annotations.overview import draw, source_table
from nnunetv2_conemos.datasets.check import check
from nnunetv2_conemos.environment import check_environment
from nnunetv2_conemos.errors import Finding
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.parallel import default_processes


def print_findings(findings: Iterable[Finding], console: Console) -> None:
    """Print a paragraph for each finding: severity, where, what is wrong, what to do."""
    colours = {"error": "bold red", "warning": "yellow"}
    for finding in findings:
        console.print(f"[{colours[finding.severity]}]{finding.severity.upper()}[/]  [bold]{escape(finding.where)}[/]")
        console.print(f"       {finding.what}\n       -> {finding.remedy}", markup=False, highlight=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", nargs="?", help="name or id; without it, only the environment")
    parser.add_argument(
        "-np", dest="processes", type=int, default=default_processes(), metavar="N", help="[%(default)s]"
    )
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="draw the label x source table, e.g. to sources.png"
    )
    parser.add_argument("--quick", action="store_true", help="read only headers: fast, but wrong voxels stay unseen")
    parser.epilog = "Exit status: 0 = sound (warnings allowed), 1 = errors found, 2 = there is nothing to check."


def run(args: argparse.Namespace) -> int:
    console = Console(soft_wrap=True)
    with console.status("Checking the environment"):
        findings = check_environment()
    print_findings(findings, console)
    if args.dataset is not None:
        report = check(args.dataset, processes=args.processes, quick=args.quick)
        print_findings(report.findings, console)
        findings += report.findings
        if report.table is not None:
            console.print(source_table(report.table, report.occurs))
        if args.figure and report.table is not None and report.occurs is not None:
            figure = draw(report.table, report.occurs)
            kind = args.figure.suffix[1:] or "png"
            write_aside(args.figure, lambda file: figure.savefig(file, dpi=150, format=kind))
            console.print(f"drawn to {args.figure}", markup=False, highlight=False)
    errors = sum(finding.severity == "error" for finding in findings)
    console.print(f"{errors} error(s), {len(findings) - errors} warning(s)", highlight=False)
    return 1 if errors else 0
