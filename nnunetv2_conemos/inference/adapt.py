"""`conemos adapt`: from the checkpoint of another task to a start for nnU-Net's `-pretrained_weights`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import preprocessed_table
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.inference.model_folder import planned_network
from nnunetv2_conemos.training.plans_facts import PLANS_KEY, facts_for_inference, known_modalities


class Named(NamedTuple):
    """Names of the labels and modalities of a network, in the order of its parameters."""

    labels: tuple[str, ...]
    modalities: tuple[str, ...]


def names_in(checkpoint: dict[str, Any]) -> Named:
    arguments = checkpoint["init_args"]
    labels = LabelSpace.from_dataset_json(arguments["dataset_json"]).names
    return Named(labels, tuple(known_modalities(PlansManager(arguments["plans"]))))


def fresh_network(folder: Path, trainer: str, plans_name: str, configuration: str) -> tuple[nn.Module, Named]:
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
    plans[PLANS_KEY] = facts_for_inference(table, method)
    network = planned_network(trainer, manager, configuration, dataset_json)
    if not hasattr(network, "encoder"):
        raise NotImplementedError(f"{trainer} has no planned encoder that weights could be taken for. Train it anew.")
    return network, Named(table.labels.names, tuple(known_modalities(manager)))


def adapt_weights(
    trained: dict[str, Tensor], theirs: Named, network: nn.Module, ours: Named
) -> tuple[dict[str, Tensor], str]:
    """Weights for `network`: taken by name where shapes agree, per label and modality by its name, fresh elsewhere.

    `network.label_dims` (`modality_dims`) maps a parameter to its dimension over labels (modalities); those that start
    with one of `network.of_classes` are taken only where the labels are the same, in the same order. Fresh FiLM layers
    are zero, so that a stock network starts as itself. Returns the weights and a report; raises SourceError where no
    backbone weight fits.
    """
    label_dims = getattr(network, "label_dims", {})
    dims = {key: (dim, ours.labels, theirs.labels) for key, dim in label_dims.items()}
    for key, dim in getattr(network, "modality_dims", {}).items():
        dims[key] = (dim, ours.modalities, theirs.modalities)
    if ours.labels != theirs.labels:
        trained = {key: w for key, w in trained.items() if not key.startswith(getattr(network, "of_classes", ()))}
    weights, taken, fresh = network.state_dict(), [], []
    for key, mine in weights.items():
        other = trained.get(key)
        if other is not None and key in dims:
            copy_named(mine, other, *dims[key])
        elif other is not None and other.shape == mine.shape:
            mine.copy_(other)
        (taken if other is not None and (key in dims or other.shape == mine.shape) else fresh).append(key)
    backbone = [key for key in taken if key.startswith("encoder.") and ".film." not in key]
    if not backbone:
        raise SourceError("no backbone weight of the checkpoint fits this network: other architecture or plans.")
    names = [name for name in ours.labels if name in theirs.labels] if set(taken) & set(label_dims) else []
    report = f"{len(taken)} of {len(weights)} tensors taken, {len(fresh)} fresh; labels taken by name: " + (
        shorten(names) or "none"
    )
    return weights, report


def copy_named(mine: Tensor, other: Tensor, dim: int, ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Entries of a dimension by their names, and those after the named ones (of nothing, of an unknown modality)."""
    for place, name in enumerate(ours):
        if name in theirs:
            mine.select(dim, place).copy_(other.select(dim, theirs.index(name)))
    rest = mine.shape[dim] - len(ours)
    if rest and rest == other.shape[dim] - len(theirs):
        mine.narrow(dim, len(ours), rest).copy_(other.narrow(dim, len(theirs), rest))
