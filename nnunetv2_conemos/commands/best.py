"""`conemos best`: rank trained configurations and ensembles on annotated labels."""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from nnunetv2.paths import nnUNet_results

from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.evaluation.evaluate import known_dataset
from nnunetv2_conemos.evaluation.plots import print_ranking
from nnunetv2_conemos.evaluation.ranking import RESULT, entry_json, find_models, inference_commands, joint_name, rank
from nnunetv2_conemos.files import write_json
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
    """Rank, print, and write the ranking with the commands for the winner to nnUNet_results/DATASET."""
    name, folder = known_dataset(args.dataset)
    models = find_models(name, args.trainers, args.plans, args.configurations)
    folds = sorted(set(args.folds or set().union(*(model.folds for model in models))))
    ranking, lacking = rank(models, folds, read_dataset_json(folder), not args.disable_ensembling, args.processes)
    commands = inference_commands(ranking[0].models, folds)
    print_ranking(pd.DataFrame({joint_name(entry.models): entry.dice for entry in ranking}))
    for ensemble, remedy in lacking.items():
        print("\n  ".join([f"Not ranked, probabilities are missing: {ensemble}. They are made by", *remedy]))
    print("\n  ".join(["Predict with the best:", *commands]))
    file = Path(nnUNet_results) / name / RESULT
    entries = [entry_json(place, entry) for place, entry in enumerate(ranking, start=1)]
    write_json(file, {"folds": folds, "commands": commands, "ranking": entries, "not_ranked": lacking})
    print(f"Written: {file}")
