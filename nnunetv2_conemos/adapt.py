"""`conemos adapt`: from the checkpoint of another task to a start for nnU-Net's `-pretrained_weights`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunetv2_conemos.datasets import dataset_name, preprocessed_folder, read_dataset_json, write_aside
from nnunetv2_conemos.method import PLANS_KEY, facts_for_inference
from nnunetv2_conemos.models import planned_network, read_checkpoint
from nnunetv2_conemos.refusals import preprocessed_table
from nnunetv2_conemos.sources import LabelSpace, SourceError, shorten


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
    checkpoint = read_checkpoint(args.checkpoint)
    folder = preprocessed_folder(dataset_name(args.dataset))
    if folder is None:
        raise FileNotFoundError(f"{args.dataset} is not preprocessed. Run nnUNetv2_plan_and_preprocess first.")
    labels = LabelSpace.from_dataset_json(read_dataset_json(folder))
    network = fresh_network(folder, args.tr, args.p, args.c)
    weights, report = adapt_weights(checkpoint["network_weights"], checkpoint_labels(checkpoint), network, labels.names)
    content = {"network_weights": weights, "adapted_from": str(args.checkpoint)}
    write_aside(args.output, lambda file: torch.save(content, file))
    print(
        f"{report}\nWritten: {args.output}\nUse: nnUNetv2_train {args.dataset} {args.c} FOLD -tr {args.tr} -p {args.p} "
        f"-pretrained_weights {args.output}"
    )


def checkpoint_labels(checkpoint: dict[str, Any]) -> tuple[str, ...]:
    return LabelSpace.from_dataset_json(checkpoint["init_args"]["dataset_json"]).names


def fresh_network(folder: Path, trainer: str, plans_name: str, configuration: str) -> nn.Module:
    """The untrained network that this trainer would build for a preprocessed dataset."""
    file = folder / f"{plans_name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist. Plan the dataset, or name its plans with -p.")
    dataset_json = read_dataset_json(folder)
    plans = json.loads(file.read_text())
    manager = PlansManager(plans)
    if configuration not in manager.available_configurations:
        raise SourceError(
            f"{file} has no configuration '{configuration}': {', '.join(manager.available_configurations)}."
        )
    table = preprocessed_table(plans, configuration, dataset_json)
    method = getattr(recursive_find_trainer_class_by_name(trainer), "method", None)
    plans[PLANS_KEY] = facts_for_inference(table, table.modalities if method and method.modalities else ())
    return planned_network(trainer, manager, configuration, dataset_json)


def adapt_weights(
    trained: dict[str, Tensor], their_labels: tuple[str, ...], network: nn.Module, labels: tuple[str, ...]
) -> tuple[dict[str, Tensor], str]:
    """Weights for `network`: taken by name where shapes agree, per label by label name, fresh elsewhere.

    `network.label_dims` maps a parameter to its dimension over labels. Fresh FiLM layers are zero, so that a stock
    network starts as itself. Returns the weights and a report; raises SourceError where no backbone weight fits.
    """
    label_dims = getattr(network, "label_dims", {})
    common = [(labels.index(name), their_labels.index(name)) for name in labels if name in their_labels]
    weights, taken, fresh = network.state_dict(), [], []
    for key, ours in weights.items():
        theirs = trained.get(key)
        if theirs is not None and key in label_dims:
            copy_labels(ours, theirs, label_dims[key], common)
        elif theirs is not None and theirs.shape == ours.shape:
            ours.copy_(theirs)
        (taken if theirs is not None and (key in label_dims or theirs.shape == ours.shape) else fresh).append(key)
    backbone = [key for key in taken if key.startswith("encoder.") and ".film." not in key]
    if not backbone:
        raise SourceError("no backbone weight of the checkpoint fits this network: other architecture or plans.")
    names = [labels[ours] for ours, _ in common] if set(taken) & set(label_dims) else []
    report = f"{len(taken)} of {len(weights)} tensors taken, {len(fresh)} fresh; labels taken by name: " + (
        shorten(names) or "none"
    )
    return weights, report


def copy_labels(ours: Tensor, theirs: Tensor, dim: int, common: list[tuple[int, int]]) -> None:
    for mine, other in common:
        ours.select(dim, mine).copy_(theirs.select(dim, other))
