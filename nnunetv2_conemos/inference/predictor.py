"""Predict with a trained model: all labels or some, images of a folder or the training cases of a dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import (
    nnUNetPredictor,
    predict_entry_point,
    predict_entry_point_modelfolder,
)
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import get_output_folder

from nnunetv2_conemos.datasets.dataset_json import RawDataset, read_checked
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.environment import variables
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.inference.inputs import require_images
from nnunetv2_conemos.inference.model_folder import ModelFolder, read_checkpoint, read_model
from nnunetv2_conemos.networks.spec import LABELS_VARIABLE, MODALITY_VARIABLE, SKIP_VARIABLE, UNKNOWN
from nnunetv2_conemos.text_files import read_object


def default_device() -> str:
    """Return `cuda` if there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Inference:
    """nnU-Net's own options of prediction.

    `folds`: an ensemble of these (None: all that were trained). `mirroring`: average over mirrored images.
    `preprocessing` and `export` are numbers of processes; with both 0, everything runs in the current process.
    `skip_absent`: give up a label early in tiles where its coarse logits say that it is absent.
    """

    folds: Sequence[str] | None = None
    checkpoint: str = "checkpoint_final.pth"
    device: str = field(default_factory=default_device)
    mirroring: bool = True
    preprocessing: int = 3
    export: int = 3
    skip_absent: bool = False


def predict(
    model: Path | str,
    images: Path | str,
    output: Path | str,
    *,
    labels: Sequence[str] | None = None,
    modality: str | None = None,
    inference: Inference | None = None,
    probabilities: bool = False,
) -> list[Path]:
    """Predict the images of a folder, named CASE_0000 and so on, and return the files that were written to `output`.

    `model` is the folder of a trained model. `labels`: compute these only (None: all that were annotated in training).
    `modality`: that of the images, for methods that are conditioned on it (None: the only one, or unknown).
    `probabilities`: write these beside each map. Raises FileNotFoundError for a folder without a model, SourceError or
    ValueError for labels and a modality that the model does not know.
    """
    register_trainers()
    trained, how = read_model(Path(model)), inference or Inference()
    predictor = make_predictor(trained, how, labels, modality)
    Path(output).mkdir(parents=True, exist_ok=True)
    predict_files(predictor, how, str(images), str(output), probabilities)
    return sorted(Path(output).glob(f"*{trained.dataset_json['file_ending']}"))


def predict_as_nnunet(
    arguments: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    modality: str | None = None,
    skip_absent: bool = False,
) -> None:
    """Run nnUNetv2_predict, or with -m among its `arguments` nnUNetv2_predict_from_modelfolder, for some of the labels.

    `skip_absent` as in `Inference`. nnU-Net's programs build the network themselves, so the choice reaches it through
    the environment. Raises what `predict` raises.
    """
    register_trainers()
    if labels or modality or skip_absent:
        check_choice(read_model(model_of(arguments)), labels, modality)
    require_safe_checkpoints(arguments)
    require_images_of(arguments)
    program = predict_entry_point_modelfolder if "-m" in arguments else predict_entry_point
    with environment_choice(labels, modality, skip_absent), command_line(["conemos predict", *arguments]):
        program()


def make_predictor(
    model: ModelFolder, how: Inference, labels: Sequence[str] | None = None, modality: str | None = None
) -> nnUNetPredictor:
    """Load nnU-Net's predictor, with the network set to compute only some labels, in images of a modality."""
    check_choice(model, labels, modality)
    predictor = nnUNetPredictor(use_mirroring=how.mirroring, device=torch.device(how.device), allow_tqdm=False)
    folds: Any = tuple(model.folds(how.checkpoint, how.folds))
    for fold in folds:
        read_checkpoint(model.folder / f"fold_{fold}" / how.checkpoint, mapped=True)  # nnU-Net would run code in it
    with environment_choice(None, None, how.skip_absent):
        predictor.initialize_from_trained_model_folder(str(model.folder), folds, how.checkpoint)
    network: Any = getattr(predictor.network, "_orig_mod", predictor.network)
    if labels is not None:
        network.output_labels = tuple(dict.fromkeys(model.labels.names.index(label) + 1 for label in labels))
    if modality is not None:
        network.modality = model.modalities.index(modality) + 1 if modality in model.modalities else 0
    return predictor


def predict_files(
    predictor: nnUNetPredictor,
    how: Inference,
    images: list[list[str]] | str,
    outputs: list[str] | str,
    probabilities: bool,
) -> None:
    """Write the prediction of each list of channels to a file name without ending, or of one folder to another.

    Raises VolumeError, before anything is predicted, for an image that cannot be used as it is.
    """
    files = Path(images) if isinstance(images, str) else [[Path(file) for file in of_case] for of_case in images]
    manager: Any = predictor.plans_manager
    require_images(files, manager.plans, predictor.dataset_json or {})
    if how.preprocessing == how.export == 0:
        predictor.predict_from_files_sequential(images, outputs, probabilities)
    else:
        predictor.predict_from_files(images, outputs, probabilities, True, how.preprocessing, how.export)


def check_choice(model: ModelFolder, labels: Sequence[str] | None, modality: str | None) -> None:
    """Raise SourceError for a name that is not a label of the model, ValueError for what it was not trained on."""
    for label in labels or ():
        model.labels.index(label, "labels")
        if label in model.never_annotated:
            raise InputError(f"labels: '{label}' was annotated in no training case, so it is never predicted.")
    known = model.modalities
    if modality is not None and (modality not in (*known, UNKNOWN) or not known):
        raise InputError(f"modality: this model knows {', '.join(known) or 'no modality'}, found '{modality}'.")


def model_of(arguments: Sequence[str]) -> Path:
    """Return the model folder that arguments of nnUNetv2_predict name; raises ValueError where they name none."""
    given = dict(pairwise(arguments))
    if "-m" in given:
        return Path(given["-m"])
    if not ("-d" in given and "-c" in given):
        raise InputError("name the model: -d DATASET -c CONFIGURATION -tr TRAINER, or -m MODEL_FOLDER.")
    trainer, plans = given.get("-tr", "nnUNetTrainer"), given.get("-p", "nnUNetPlans")
    return Path(get_output_folder(given["-d"], trainer, plans, given["-c"]))


def require_images_of(arguments: Sequence[str]) -> None:
    """Raise what `require_images` does, where arguments of nnUNetv2_predict name images and a model that exists."""
    given = dict(pairwise(arguments))
    if "-i" in given and ("-m" in given or {"-d", "-c"} <= given.keys()):
        model = model_of(arguments)
        if (model / "dataset.json").is_file() and (model / "plans.json").is_file():
            plans, dataset_json = read_object(model / "plans.json"), read_checked(model / "dataset.json", RawDataset)
            require_images(Path(given["-i"]), plans, dataset_json)


def require_safe_checkpoints(arguments: Sequence[str]) -> None:
    """Raise an error where a checkpoint of the model that arguments of nnUNetv2_predict name is damaged or unsafe."""
    given = dict(pairwise(arguments))
    if "-m" in given or (nnUNet_results.is_set() and {"-d", "-c"} <= given.keys()):
        for file in sorted(model_of(arguments).glob(f"fold_*/{given.get('-chk', Inference.checkpoint)}")):
            read_checkpoint(file, mapped=True)


@contextmanager
def environment_choice(labels: Sequence[str] | None, modality: str | None, skip_absent: bool = False) -> Iterator[None]:
    """Build networks, within the block, for only these labels, in images of this modality; None changes nothing."""
    chosen = {LABELS_VARIABLE: json.dumps(list(labels)) if labels else None, MODALITY_VARIABLE: modality}
    chosen[SKIP_VARIABLE] = "1" if skip_absent else None
    with variables(chosen):
        yield


@contextmanager
def command_line(words: list[str]) -> Iterator[None]:
    """Set `sys.argv`, which nnU-Net's programs read, within the block."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before
