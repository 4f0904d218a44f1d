"""A trained model folder as nnU-Net leaves it: DATASET/TRAINER__PLANS__CONFIGURATION."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import get_output_folder
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from pydantic import BaseModel, ValidationError
from torch import nn

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.datasets.dataset_json import RawDataset, read_checked
from nnunetv2_conemos.datasets.folders import dataset_name
from nnunetv2_conemos.errors import ConemosError, InputError, MissingFileError, SourceError, brief, describe, shorten
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.text_files import read_object
from nnunetv2_conemos.training.checkpoints import MODEL_KEYS, load


class Facts(BaseModel):
    """What a trainer of this package writes into the plans, under PLANS_KEY, for prediction."""

    untaught: list[str]
    labels: list[str] | None = None
    modalities: list[str] = []


class ModelPlans(BaseModel):
    """What is used of the plans of a trained model."""

    dataset_name: str
    plans_name: str
    configurations: dict[str, dict[str, Any]]
    conemos: Facts


@dataclass(frozen=True)
class ModelFolder:
    """A model, its plans and the dataset.json it was trained on."""

    folder: Path
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @property
    def labels(self) -> LabelSpace:
        return LabelSpace.from_dataset_json(self.dataset_json)

    @property
    def never_annotated(self) -> list[str]:
        """Labels that no training case was annotated for."""
        return self.plans[PLANS_KEY]["untaught"]

    @property
    def modalities(self) -> list[str]:
        """Modalities that the network can be conditioned on; none for methods that are not conditioned on it."""
        return self.plans[PLANS_KEY].get("modalities", [])

    def folds(self, checkpoint: str, wanted: Sequence[str] | None = None) -> list[str]:
        """Return the wanted folds, or all with this checkpoint; raises FileNotFoundError for those that lack it."""
        found = sorted(file.parent.name[5:] for file in self.folder.glob(f"fold_*/{checkpoint}"))
        lacking = [fold for fold in wanted or () if fold not in found]
        if lacking or not found:
            raise MissingFileError(
                f"{self.folder}: expected {checkpoint} in fold {shorten(lacking) or '0 or others'}, found it in "
                f"{shorten(found) or 'none'}. Train the fold, or name another with -f or -chk."
            )
        return list(wanted or ()) or [fold for fold in found if fold != "all"] or found

    def network(self, checkpoint: dict[str, Any]) -> nn.Module:
        """Build the trained network, with all its deep-supervision heads."""
        configuration = checkpoint["init_args"]["configuration"]
        manager = PlansManager(self.plans)
        network = planned_network(checkpoint["trainer_name"], manager, configuration, self.dataset_json)
        try:
            network.load_state_dict(checkpoint["network_weights"])
        except RuntimeError as error:
            what = shorten((line.strip() for line in str(error).splitlines()), 3)
            raise SourceError(f"{self.folder}: the weights of a checkpoint do not fit plans.json: {what}") from None
        return network


def planned_network(trainer: str, plans: PlansManager, configuration: str, dataset_json: dict[str, Any]) -> nn.Module:
    """Build the untrained network of a trainer, with all its deep-supervision heads.

    Raises InputError where plans, dataset.json and trainer do not make a network.
    """
    try:
        chosen = plans.get_configuration(configuration)
        return recursive_find_trainer_class_by_name(trainer).build_network_architecture(
            plans,
            chosen,
            determine_num_input_channels(plans, chosen, dataset_json),
            plans.get_label_manager(dataset_json).num_segmentation_heads,
            True,
        )
    except ConemosError:
        raise
    except Exception as error:  # whatever the wrong value of a plan makes fail first
        raise InputError(
            f"trainer {trainer}, configuration {configuration}: plans.json and dataset.json do not make a network "
            f"({type(error).__name__}: {brief(error)}). Restore the files, or plan again."
        ) from None


def model_folder(dataset: str, trainer: str, plans: str, configuration: str) -> Path:
    """Return where training leaves a model; raises FileNotFoundError where nnU-Net does not know the dataset."""
    if not nnUNet_results.is_set():
        raise MissingFileError("nnUNet_results is not set. Set it to the folder that holds the models, or pass -m.")
    return Path(get_output_folder(dataset_name(dataset), trainer, plans, configuration))


def read_folder(folder: Path) -> ModelFolder:
    """Read the folder of any trained model; raises FileNotFoundError where it holds none."""
    lacking = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if lacking:
        raise MissingFileError(
            f"{folder}: expected a trained model (TRAINER__PLANS__CONFIGURATION), found no {shorten(lacking)} in it."
        )
    return ModelFolder(folder, read_object(folder / "plans.json"), read_checked(folder / "dataset.json", RawDataset))


def is_ours(folder: Path) -> bool:
    """Return whether a model was trained by a trainer of this package; raises FileNotFoundError for no model."""
    return PLANS_KEY in read_folder(folder).plans


def read_model(folder: Path) -> ModelFolder:
    """Read a model folder of this package's trainers; raises FileNotFoundError or SourceError for any other."""
    model = read_folder(folder)
    if PLANS_KEY not in model.plans:
        raise SourceError(f"{folder} was not trained by a trainer of this package: it predicts all its labels at once.")
    try:
        facts = ModelPlans.model_validate(model.plans).conemos
    except ValidationError as error:
        raise SourceError(f"{folder / 'plans.json'}: {describe(error)}. Restore it, or train again.") from None
    named = list(model.labels.names)
    if facts.labels not in (None, named):
        raise SourceError(
            f"{folder / 'dataset.json'}: expected the labels that the model was trained for, in their order.\n"
            f"  trained: {facts.labels}\n  found: {named}\nRestore the dataset.json that the training wrote."
        )
    return model


def read_checkpoint(file: Path, mapped: bool = False) -> dict[str, Any]:
    """Load a checkpoint of nnU-Net's trainers or of this package's; raises an error that names the file for any other.

    Nothing in the file is run as code. `mapped`: read weights when they are used.
    """
    checkpoint = load(file, (*MODEL_KEYS, "trainer_name"), mapped)
    arguments = checkpoint["init_args"]
    found = arguments if isinstance(arguments, dict) else {}
    lacking = [key for key in ("plans", "configuration", "dataset_json") if key not in found]
    if lacking or not isinstance(checkpoint["network_weights"], dict):
        what = f"`init_args` lacks {', '.join(lacking)}" if lacking else "`network_weights` are no weights"
        raise SourceError(f"{file} is not a checkpoint of nnU-Net: {what}. Expected one that nnU-Net trained.")
    return checkpoint
