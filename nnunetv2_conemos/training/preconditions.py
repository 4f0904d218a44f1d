"""Check what must hold before nnU-Net creates the results folder of a training; every error says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.copies import require_fresh
from nnunetv2_conemos.datasets.dataset_json import check_trained_labels, read_dataset_json
from nnunetv2_conemos.datasets.folders import preprocessed_table, raw_folder, require_same_tables
from nnunetv2_conemos.datasets.splits import SPLITS, read_splits, require_same_splits
from nnunetv2_conemos.errors import InputError, SourceError, UnsupportedError
from nnunetv2_conemos.networks.spec import LABELS_VARIABLE, MODALITY_VARIABLE, PLANS_KEY, SKIP_VARIABLE
from nnunetv2_conemos.text_files import read_object
from nnunetv2_conemos.training.checkpoints import require_resumable
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import all_options


def checked_table(method: Method, plans: dict, configuration: str, dataset_json: dict, trainer: str) -> SourceTable:
    """Return who annotated what among the preprocessed cases; raises an error where training on them cannot work."""
    require_no_prediction_variables(method)
    require_no_cascade(plans, configuration, trainer)
    check_trained_labels(dataset_json, Path(nnUNet_preprocessed) / plans["dataset_name"])
    require_dimension(method, plans, configuration, trainer)
    require_regions_supported(method, dataset_json, trainer)
    require_same_tables(plans["dataset_name"])
    require_fresh(plans, configuration)
    require_labels_of_folder(plans, configuration, trainer, dataset_json)
    table = preprocessed_table(plans, configuration, dataset_json)
    require_supervision(method, table, trainer)
    return table


def require_no_prediction_variables(method: Method) -> None:
    """Raise ValueError where an environment variable for prediction is set."""
    for variable in (LABELS_VARIABLE, SKIP_VARIABLE, *((MODALITY_VARIABLE,) if method.modalities else ())):
        if os.environ.get(variable):
            raise InputError(
                f"{variable} is set ({os.environ[variable]}). It is for prediction: the final validation would follow "
                "it too. Unset it to train."
            )


def require_no_cascade(plans: dict, configuration: str, trainer: str) -> None:
    """Raise NotImplementedError for a configuration that needs a previous stage."""
    if PlansManager(plans).get_configuration(configuration).previous_stage_name is not None:
        raise UnsupportedError(
            f"{trainer} does not train the cascade ({configuration}): it needs predictions of the previous stage that "
            "nnU-Net only makes for validation cases. Use 3d_fullres or 3d_lowres."
        )


def require_dimension(method: Method, plans: dict, configuration: str, trainer: str) -> None:
    """Raise NotImplementedError for a 2D or 3D configuration that the method does not train."""
    dimension = len(PlansManager(plans).get_configuration(configuration).patch_size)
    if dimension not in method.dimensions:
        possible = " or ".join(f"{d}D" for d in method.dimensions)
        raise UnsupportedError(
            f"{trainer} trains {possible} configurations only; {configuration} is {dimension}D. Use another "
            "configuration, or another trainer."
        )


def require_supervision(method: Method, table: SourceTable, trainer: str) -> None:
    """Raise SourceError where no label is annotated (nor tagged, for a method that learns from tags) in any case."""
    if len(table.never_annotated(tags=method.tags)) == len(table.labels):
        raise SourceError(
            f"{trainer} learns from annotated labels only, and no source annotates any: all `annotated` lists are "
            "empty. Annotate cases, or learn from tags with CMERTrainer."
        )


def require_regions_supported(method: Method, dataset_json: dict, trainer: str) -> None:
    """Raise NotImplementedError for regions, where the method assumes that labels exclude each other."""
    if LabelSpace.from_dataset_json(dataset_json).has_regions and not method.regions:
        raise UnsupportedError(
            f"{trainer} assumes that labels exclude each other, so it does not train regions. Use "
            "ConditionalFiLMTrainer or MultiTalentTrainer, or labels that do not overlap."
        )


def require_unlabelled_case(table: SourceTable, cases: Iterable[str], trainer: str) -> None:
    """Raise SourceError where every case is annotated for something."""
    if all(table.known(case).any() for case in cases):
        raise SourceError(
            f"{trainer} learns from cases that are not annotated for anything, and none of the training cases is one. "
            'Declare some (a source with "annotated": []), or use UniMOSTrainer or MarginalLossTrainer, which do not '
            "need them."
        )


def require_split_of_raw(file: Path, table: SourceTable) -> None:
    """Raise SourceError where the split of the preprocessed dataset, `file`, is not that of the raw one, if any."""
    raw = raw_folder(file.parent.name)
    if raw is not None:
        require_same_splits(raw / SPLITS, file, table)


def require_fold(file: Path, fold: int, table: SourceTable) -> None:
    """Raise SourceError where the split is wrong, is not that of the raw dataset, or lacks the fold.

    For a fold that it lacks, nnU-Net would make a random one, test cases included.
    """
    if not file.is_file():
        return
    folds = len(read_splits(file, table))
    require_split_of_raw(file, table)
    if int(fold) >= folds:
        raise SourceError(
            f"fold {fold}: expected one of the {folds} of {file}, counted from 0. Train one of them, or add the fold "
            "to the file."
        )


def require_supervised_case(has_supervision: Iterable[str], part: str, fold: int | str, file: Path) -> None:
    """Raise SourceError where a part of the fold has no supervised case."""
    if not any(has_supervision):
        what = {"train": "training", "val": "validation"}[part]
        raise SourceError(
            f"fold {fold}: no annotated {what} case. Put at least one annotated case into '{part}' of {file}."
        )


def require_labels_of_folder(plans: dict, configuration: str, trainer: str, dataset_json: dict) -> None:
    """Raise SourceError where the model folder has other labels: its folds share one dataset.json."""
    folder = model_folder(plans, configuration, trainer)
    if folder and (folder / "dataset.json").is_file():
        require_same_labels(read_dataset_json(folder)["labels"], dataset_json["labels"], str(folder))


def require_same_facts(plans: dict, configuration: str, trainer: str) -> None:
    """Raise SourceError where the model folder was trained for other modalities or sets of labels than `plans` say.

    The folds of one model folder share its plans, and those determine what prediction queries.
    """
    folder = model_folder(plans, configuration, trainer)
    if not (folder and (folder / "plans.json").is_file()):
        return
    theirs, ours = read_object(folder / "plans.json").get(PLANS_KEY, {}), plans[PLANS_KEY]
    for name, meaning in (("modalities", "modalities"), ("groups", "sets of labels annotated together")):
        if theirs.get(name, ours[name]) != ours[name]:
            raise SourceError(
                f"{folder} was trained for other {meaning} than `sources` declare.\n  trained: {theirs[name]}\n"
                f"  dataset: {ours[name]}\nRestore `sources`, or move the model folder away."
            )


def settle_options(plans: dict, configuration: str, method: Method, trainer: str) -> None:
    """Write all options of a method into the configuration, so that later defaults do not change a trained model.

    Raises InputError for an option or a value that does not exist, and SourceError where the model folder was trained
    with others: its folds share one plans.json, from which prediction builds the network of each.
    """
    plans.pop(PLANS_KEY, None)  # of a model that these plans were taken from
    ours = plans["configurations"][configuration][PLANS_KEY] = all_options(plans, configuration, method)
    folder = model_folder(plans, configuration, trainer)
    if not (folder and (folder / "plans.json").is_file()):
        return
    theirs = all_options(read_object(folder / "plans.json"), configuration, method)
    changed = [name for name in ours if theirs[name] != ours[name]]
    if changed:
        found = "; ".join(f"{name}: {json.dumps(theirs[name])}, now {json.dumps(ours[name])}" for name in changed)
        raise SourceError(
            f"{folder} was trained with other options ({found}). Set those in the plans under `{PLANS_KEY}` of the "
            "configuration, or move the model folder away."
        )


def model_folder(plans: dict, configuration: str, trainer: str) -> Path | None:
    """Return the folder in which nnU-Net keeps the folds of this training; None where nnUNet_results is not set."""
    if not nnUNet_results.is_set():
        return None
    return Path(nnUNet_results) / plans["dataset_name"] / f"{trainer}__{plans['plans_name']}__{configuration}"


def require_checkpoint_of(checkpoint: dict | str, labels: dict) -> None:
    """Raise SourceError where a checkpoint, or the file of one, was trained for other labels."""
    loaded = require_resumable(Path(checkpoint)) if isinstance(checkpoint, str) else checkpoint
    require_same_labels(loaded["init_args"]["dataset_json"]["labels"], labels, str(checkpoint))


def require_same_labels(theirs: dict, ours: dict, where: str) -> None:
    """Raise SourceError where the `labels` of two dataset.json differ in names, order or values."""

    def names(labels: dict) -> LabelSpace:
        return LabelSpace.from_dataset_json({"labels": labels}, consecutive=False)

    if names(theirs) != names(ours):
        raise SourceError(
            f"{where} was trained for other labels than this dataset has.\n  trained: {theirs}\n  dataset: {ours}\n"
            "Restore the labels, move the model folder away, or start from it with `conemos adapt`."
        )
