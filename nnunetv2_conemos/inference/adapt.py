"""Convert the checkpoint of another task into initial weights for nnU-Net's `-pretrained_weights`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import dataset_name, preprocessed_folder, preprocessed_table
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.errors import MissingFileError, SourceError, UnsupportedError
from nnunetv2_conemos.files import exclusive, require_absent
from nnunetv2_conemos.inference.model_folder import planned_network, read_checkpoint
from nnunetv2_conemos.networks.spec import PLANS_KEY, known_modalities
from nnunetv2_conemos.text_files import read_object
from nnunetv2_conemos.training.checkpoints import write_checkpoint
from nnunetv2_conemos.training.plans_facts import facts_for_inference


class Named(NamedTuple):
    """Names of the labels and modalities of a network, in the order of its parameters."""

    labels: tuple[str, ...]
    modalities: tuple[str, ...]


@dataclass(frozen=True)
class Adapted:
    """Result of `adapt`: the numbers of tensors copied and of all tensors, and the labels matched by name."""

    file: Path
    taken: int
    tensors: int
    labels: list[str]


def adapt(
    checkpoint: Path | str,
    dataset: str,
    output: Path | str,
    *,
    trainer: str = "ConditionalFiLMTrainer",
    plans: str = "nnUNetPlans",
    configuration: str = "3d_fullres",
    overwrite: bool = False,
) -> Adapted:
    """Write a file for `-pretrained_weights` from the checkpoint of stock nnU-Net or of a trainer of this package.

    `dataset` (name or id) is the preprocessed one that `trainer` will train on. Raises SourceError where no backbone
    weight fits, and FileNotFoundError or FileExistsError for files that are missing or exist already; nothing is
    written then.
    """
    file = Path(output)
    with exclusive(file):
        require_absent(file, overwrite)
        return _adapt(Path(checkpoint), dataset, file, trainer, plans, configuration)


def _adapt(checkpoint: Path, dataset: str, file: Path, trainer: str, plans: str, configuration: str) -> Adapted:
    register_trainers()
    content = read_checkpoint(checkpoint)
    folder = preprocessed_folder(dataset_name(dataset))
    if folder is None:
        raise MissingFileError(f"{dataset} is not preprocessed. Run nnUNetv2_plan_and_preprocess first.")
    network, ours = fresh_network(folder, trainer, plans, configuration)
    weights, taken = adapt_weights(content["network_weights"], names_in(content), network, ours)
    start = {"network_weights": weights, "adapted_from": str(checkpoint)}
    write_checkpoint(file, lambda aside: torch.save(start, aside))
    by_name = set(taken) & set(getattr(network, "label_dims", {}))
    labels = [name for name in ours.labels if name in names_in(content).labels] if by_name else []
    return Adapted(file, len(taken), len(weights), labels)


def names_in(checkpoint: dict[str, Any]) -> Named:
    """Read the names of the labels and modalities of a checkpoint."""
    arguments = checkpoint["init_args"]
    labels = LabelSpace.from_dataset_json(arguments["dataset_json"]).names
    return Named(labels, known_modalities(PlansManager(arguments["plans"])))


def fresh_network(folder: Path, trainer: str, plans_name: str, configuration: str) -> tuple[nn.Module, Named]:
    """Build the untrained network of a trainer for a preprocessed dataset, and return it with its names."""
    file = folder / f"{plans_name}.json"
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist. Plan the dataset, or name its plans with -p.")
    dataset_json = read_dataset_json(folder)
    plans = read_object(file)
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
        raise UnsupportedError(
            f"{trainer} has no planned encoder that weights could be copied to. Train it from scratch."
        )
    return network, Named(table.labels.names, known_modalities(manager))


def adapt_weights(
    trained: dict[str, Tensor], theirs: Named, network: nn.Module, ours: Named
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights for `network`, and the keys of those copied: by name where shapes agree; others stay initial.

    `network.label_dims` (`modality_dims`) maps a parameter to its dimension over labels (modalities), whose entries are
    copied by the name of the label. Parameters that start with one of `network.of_classes` are copied only where the
    labels are the same, in the same order. Untrained FiLM layers are the identity, so a stock network is reproduced.
    Raises SourceError where no backbone weight fits.
    """
    label_dims = getattr(network, "label_dims", {})
    dims = {key: (dim, ours.labels, theirs.labels) for key, dim in label_dims.items()}
    for key, dim in getattr(network, "modality_dims", {}).items():
        dims[key] = (dim, ours.modalities, theirs.modalities)
    if ours.labels != theirs.labels:
        trained = {key: w for key, w in trained.items() if not key.startswith(getattr(network, "of_classes", ()))}
    weights, taken = network.state_dict(), []
    for key, mine in weights.items():
        other = trained.get(key)
        if other is not None and key in dims:
            copy_named(mine, other, *dims[key])
        elif other is not None and other.shape == mine.shape:
            mine.copy_(other)
        else:
            continue
        taken.append(key)
    backbone = [key for key in taken if key.startswith("encoder.") and ".film." not in key]
    if not backbone:
        raise SourceError("no backbone weight of the checkpoint fits this network: other architecture or plans.")
    return weights, taken


def copy_named(mine: Tensor, other: Tensor, dim: int, ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Copy entries of a dimension by their names, then those after them (of no label, of an unknown modality)."""
    for place, name in enumerate(ours):
        if name in theirs:
            mine.select(dim, place).copy_(other.select(dim, theirs.index(name)))
    rest = mine.shape[dim] - len(ours)
    if rest and rest == other.shape[dim] - len(theirs):
        mine.narrow(dim, len(ours), rest).copy_(other.narrow(dim, len(theirs), rest))
