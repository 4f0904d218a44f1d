"""Models that nnU-Net trained on a dataset: their validation results, and the commands that complete or use them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.ensembling.ensemble import ensemble_crossvalidations
from nnunetv2.evaluation.find_best_configuration import generate_inference_command
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import get_ensemble_name, get_output_folder

from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.errors import InputError, MissingFileError, SourceError, shorten
from nnunetv2_conemos.evaluation.evaluate import case_files
from nnunetv2_conemos.evaluation.provenance import labels_of_training

Maps = dict[str, Path]  # case -> label map


@dataclass(frozen=True)
class Model:
    """A model trained on a dataset, as nnU-Net names it."""

    dataset: str
    trainer: str
    plans: str
    configuration: str

    @property
    def folder(self) -> Path:
        return Path(get_output_folder(self.dataset, self.trainer, self.plans, self.configuration))

    @property
    def folds(self) -> set[int]:
        return {int(path.name[5:]) for path in self.folder.glob("fold_*") if path.name[5:].isdecimal()}

    def validation(self, fold: int) -> Path:
        return self.folder / f"fold_{fold}" / "validation"

    def training_command(self, fold: int) -> str:
        """Return the command that completes this fold: its validation, the rest of its training, or all of it."""
        trained = self.validation(fold).parent
        finished = (trained / "checkpoint_final.pth").is_file()
        begun = any((trained / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best"))
        start = "--val " if finished else "--c " if begun else ""
        words = ["nnUNetv2_train", self.dataset, self.configuration, str(fold), "-tr", self.trainer, "-p", self.plans]
        return f"{shlex.join(words)} {start}--npz"


def joint_name(models: Sequence[Model]) -> str:
    return " + ".join(model.folder.name for model in models)


def find_models(
    dataset: str,
    trainers: Collection[str] | None = None,
    plans: Collection[str] | None = None,
    configurations: Collection[str] | None = None,
) -> list[Model]:
    """Find the models in nnUNet_results/DATASET with these names; raises FileNotFoundError for an unknown name."""
    if not nnUNet_results.is_set():
        raise MissingFileError("nnUNet_results is not set. Set it to the folder that holds the trained models.")
    folder = Path(nnUNet_results) / dataset
    names = [file.parent.name.split("__") for file in sorted(folder.glob("*/plans.json"))]
    models = [Model(dataset, *parts) for parts in names if len(parts) == 3]
    wanted = {"trainer": trainers, "plans": plans, "configuration": configurations}
    for field, names in wanted.items():
        found = {getattr(model, field) for model in models}
        absent = set(names or ()) - found
        if absent:
            raise MissingFileError(
                f"{folder}: expected a model with {field} {shorten(sorted(absent))}, "
                f"found {shorten(sorted(found)) or 'none'}. Train it, or name another."
            )
    chosen = [m for m in models if all(getattr(m, field) in names for field, names in wanted.items() if names)]
    if not chosen:
        raise MissingFileError(
            f"{folder}: expected trained models with these names, found none. Train one, or leave options out."
        )
    return chosen


def require_labels_of_dataset(model: Model, folds: Sequence[int], dataset_json: Mapping[str, Any]) -> None:
    """Raise SourceError where a model, or one of these folds, was trained for other labels than the dataset has now.

    nnU-Net's own trainers replace the dataset.json that the folds share, but note theirs in each.
    """
    trained = {model.folder.name: read_dataset_json(model.folder)["labels"]}
    trained |= {f"{model.folder.name}, fold {f}": labels_of_training(model.folder / f"fold_{f}") for f in folds}
    for where, labels in trained.items():
        if labels is not None and labels != dataset_json["labels"]:
            raise SourceError(
                f"{where}: expected the labels of {model.dataset}, {json.dumps(dataset_json['labels'])}, "
                f"found {json.dumps(labels)}. Train it again, or leave it out with -tr, -p, -c or -f."
            )


def validation_maps(model: Model, folds: Sequence[int], ending: str) -> Maps:
    """Collect the label maps of nnU-Net's final validation over folds; raises FileNotFoundError for a fold without."""
    maps: Maps = {}
    if not folds:
        raise MissingFileError(
            f"{model.folder}: expected folds 0, 1, ..., found none. Run: {model.training_command(0)}"
        )
    for fold in folds:
        folder = model.validation(fold)
        if not (folder / "summary.json").is_file():  # nnU-Net writes it last
            raise MissingFileError(
                f"{model.folder.name}, fold {fold}: expected validation results in {folder}, found none. "
                f"Run: {model.training_command(fold)}\nOr rank other folds with -f, other models with -tr, -p or -c."
            )
        found = case_files(folder, ending)
        twice = maps.keys() & found
        if twice:
            raise InputError(
                f"{model.folder.name}: expected a case in one fold, found {shorten(sorted(twice))} in several."
            )
        maps.update(found)
    return maps


def require_same_cases(maps: Mapping[Model, Maps]) -> None:
    """Raise FileNotFoundError where models were validated on different cases: their scores cannot be compared."""
    cases = set().union(*maps.values())
    for model, found in maps.items():
        if absent := sorted(cases - found.keys()):
            raise MissingFileError(
                f"{model.folder.name}: expected the validation cases of the other models, found no {shorten(absent)}. "
                "Train all on the same splits_final.json and validate them again (nnUNetv2_train ... --val --npz)."
            )


def probability_commands(model: Model, folds: Sequence[int], maps: Maps) -> list[str]:
    """Return the commands that write the probabilities which an ensemble needs and this model lacks."""
    bare = {file.parent for case, file in maps.items() if not file.with_name(f"{case}.npz").is_file()}
    return [model.training_command(fold) for fold in folds if model.validation(fold) in bare]


def ensemble_maps(pair: Sequence[Model], folds: Sequence[int], maps: Maps, processes: int) -> Maps:
    """Write label maps of the averaged probabilities to nnUNet_results/DATASET/ensembles, as nnU-Net would."""
    folders = [str(model.folder) for model in pair]
    output = (
        Path(nnUNet_results) / pair[0].dataset / "ensembles" / get_ensemble_name(folders[0], folders[1], tuple(folds))
    )
    ensemble_crossvalidations(folders, str(output), list(folds), max(1, min(processes, len(maps))))
    return {case: output / file.name for case, file in maps.items()}


def inference_commands(models: Sequence[Model], folds: Sequence[int]) -> list[str]:
    """Return the commands that predict with one model, or with the ensemble of several."""
    single = len(models) == 1
    outputs = ["OUTPUT_FOLDER"] if single else [f"OUTPUT_FOLDER_MODEL_{i}" for i in range(1, len(models) + 1)]
    predict = [
        generate_inference_command(
            m.dataset, m.configuration, m.plans, m.trainer, list(folds), output_folder=output, save_npz=not single
        )
        for m, output in zip(models, outputs, strict=True)
    ]
    join = [] if single else [f"nnUNetv2_ensemble -i {' '.join(outputs)} -o OUTPUT_FOLDER"]
    return [" ".join(command.split()) for command in (*predict, *join)]
