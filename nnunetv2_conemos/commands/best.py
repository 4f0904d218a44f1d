"""`conemos best`: rank trained configurations and ensembles on annotated labels."""

from __future__ import annotations

import argparse

from rich.console import Console

from nnunetv2_conemos.evaluation.ranking import rank
from nnunetv2_conemos.evaluation.tables import ranking_tables
from nnunetv2_conemos.parallel import default_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="name or id")
    parser.add_argument("-tr", dest="trainers", nargs="+", metavar="T", help="trainers to rank [all that were trained]")
    parser.add_argument("-p", dest="plans", nargs="+", metavar="P", help="plans to rank [all]")
    parser.add_argument("-c", dest="configurations", nargs="+", metavar="C", help="configurations to rank [all]")
    parser.add_argument("-f", dest="folds", nargs="+", type=int, metavar="FOLD", help="folds [all that were trained]")
    parser.add_argument("--disable_ensembling", action="store_true", help="rank single models only")
    parser.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")


def run(args: argparse.Namespace) -> None:
    ranking = rank(
        args.dataset,
        trainers=args.trainers,
        plans=args.plans,
        configurations=args.configurations,
        folds=args.folds,
        ensembling=not args.disable_ensembling,
        processes=args.processes,
    )
    for table in ranking_tables(ranking.dice):
        Console().print(table)
    for ensemble, commands in ranking.not_ranked.items():
        print("\n  ".join([f"Not ranked, since probabilities are missing: {ensemble}. To write them:", *commands]))
    print("\n  ".join(["Predict with the best:", *ranking.commands]))
    print(f"Written: {ranking.file}")
