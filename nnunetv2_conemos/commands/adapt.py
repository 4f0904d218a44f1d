"""`conemos adapt`: turn a checkpoint into a start for -pretrained_weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from nnunetv2_conemos.datasets.folders import dataset_name, preprocessed_folder
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.inference.adapt import adapt_weights, fresh_network, names_in
from nnunetv2_conemos.inference.model_folder import read_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of stock nnU-Net or of a trainer of this package")
    parser.add_argument("-d", dest="dataset", required=True, help="dataset (name or id) that will be trained")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="file to write, for -pretrained_weights")
    parser.add_argument("-tr", default="ConditionalFiLMTrainer", help="trainer (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", help="plans (default: %(default)s)")
    parser.add_argument("-c", default="3d_fullres", help="configuration (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")


def run(args: argparse.Namespace) -> None:
    """Raises SourceError, FileNotFoundError or FileExistsError before anything is written."""
    if args.output.exists() and not args.overwrite:
        raise FileExistsError(f"{args.output} exists. Choose another file or pass --overwrite.")
    register_trainers()
    checkpoint = read_checkpoint(args.checkpoint)
    folder = preprocessed_folder(dataset_name(args.dataset))
    if folder is None:
        raise FileNotFoundError(f"{args.dataset} is not preprocessed. Run nnUNetv2_plan_and_preprocess first.")
    network, ours = fresh_network(folder, args.tr, args.p, args.c)
    weights, report = adapt_weights(checkpoint["network_weights"], names_in(checkpoint), network, ours)
    content = {"network_weights": weights, "adapted_from": str(args.checkpoint)}
    write_aside(args.output, lambda file: torch.save(content, file))
    print(
        f"{report}\nWritten: {args.output}\nUse: nnUNetv2_train {args.dataset} {args.c} FOLD -tr {args.tr} -p {args.p} "
        f"-pretrained_weights {args.output}"
    )
