"""`conemos best`: rank trained configurations and their pairwise ensembles by cross-validation on annotated pairs.

nnUNetv2_find_best_configuration rescores the maps of the validation for every label in every case: a right organ where
nobody annotated it counts as Dice 0, so a network that finds it loses. It may also adopt keep-largest-component, which
deletes organs. Here the score is the mean over labels of the mean Dice over annotated cases, and there is no
postprocessing. Ensembles are nnU-Net's own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from nnunetv2.ensembling.ensemble import ensemble_crossvalidations
from nnunetv2.evaluation.find_best_configuration import generate_inference_command
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.file_path_utilities import get_ensemble_name, get_output_folder

from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import preprocessed_folder, raw_folder
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.evaluation.evaluate import CaseFiles, case_files, evaluate, table_of_sources
from nnunetv2_conemos.evaluation.metrics import summarise

RESULT = "conemos_best.json"
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
        """What completes this fold: its validation, the rest of its training, or all of it."""
        trained = self.validation(fold).parent
        finished = (trained / "checkpoint_final.pth").is_file()
        begun = any((trained / f"checkpoint_{name}.pth").is_file() for name in ("latest", "best"))
        start = "--val " if finished else "--c " if begun else ""
        command = f"nnUNetv2_train {self.dataset} {self.configuration} {fold} -tr {self.trainer} -p {self.plans}"
        return f"{command} {start}--npz"


class Candidate(NamedTuple):
    """One model, or an ensemble of two; `dice` is the mean over annotated cases per label (NaN without a value)."""

    models: tuple[Model, ...]
    dice: pd.Series

    @property
    def mean(self) -> float:
        return float(self.dice.mean())


def joint_name(models: Sequence[Model]) -> str:
    return " + ".join(model.folder.name for model in models)


def entry_json(place: int, entry: Candidate) -> dict[str, Any]:
    """One place of the ranking; None where there is no value."""
    per_label = json.loads(str(entry.dice.to_json(double_precision=15)))
    dice = None if np.isnan(entry.mean) else entry.mean
    return {"rank": place, "models": [asdict(model) for model in entry.models], "dice": dice, "per_label": per_label}


def find_models(
    dataset: str,
    trainers: Collection[str] | None = None,
    plans: Collection[str] | None = None,
    configurations: Collection[str] | None = None,
) -> list[Model]:
    """Models in nnUNet_results/DATASET with one of these names; raises FileNotFoundError for a name that none has."""
    if not nnUNet_results.is_set():
        raise FileNotFoundError("nnUNet_results is not set. Set it to the folder that holds the trained models.")
    folder = Path(nnUNet_results) / dataset
    names = [file.parent.name.split("__") for file in sorted(folder.glob("*/plans.json"))]
    models = [Model(dataset, *parts) for parts in names if len(parts) == 3]
    wanted = {"trainer": trainers, "plans": plans, "configuration": configurations}
    for field, names in wanted.items():
        found = {getattr(model, field) for model in models}
        absent = set(names or ()) - found
        if absent:
            raise FileNotFoundError(
                f"{folder}: expected a model with {field} {shorten(sorted(absent))}, "
                f"found {shorten(sorted(found)) or 'none'}. Train it, or name another."
            )
    chosen = [m for m in models if all(getattr(m, field) in names for field, names in wanted.items() if names)]
    if not chosen:
        raise FileNotFoundError(
            f"{folder}: expected trained models as asked for, found none. Train one, or ask for less."
        )
    return chosen


def rank(
    models: Sequence[Model], folds: Sequence[int], dataset_json: Mapping[str, Any], ensembling: bool, processes: int
) -> tuple[list[Candidate], dict[str, list[str]]]:
    """Candidates, best first (of equals the simpler); and ensembles that cannot be ranked, with what makes them ready.

    Raises FileNotFoundError for missing validation results, SourceError for labels other than the dataset's.
    """
    ending = dataset_json["file_ending"]
    for model in models:
        require_labels_of_dataset(model, dataset_json)
    maps = {model: validation_maps(model, folds, ending) for model in models}
    require_same_cases(maps)
    candidates = [scored([model], maps[model], dataset_json, processes) for model in models]
    lacking = {}
    for pair in combinations(models, 2) if ensembling else ():
        commands = [command for model in pair for command in probability_commands(model, folds, maps[model])]
        if commands:
            lacking[joint_name(pair)] = commands
        else:
            joint = ensemble_maps(pair, folds, maps[pair[0]], processes)
            candidates.append(scored(pair, joint, dataset_json, processes))
    return sorted(candidates, key=lambda candidate: -np.nan_to_num(candidate.mean, nan=-1)), lacking


def require_labels_of_dataset(model: Model, dataset_json: Mapping[str, Any]) -> None:
    """Raises SourceError where a model was trained for other labels than the dataset has now."""
    trained = read_dataset_json(model.folder)["labels"]
    if trained != dataset_json["labels"]:
        raise SourceError(
            f"{model.folder.name}: expected the labels of {model.dataset}, {json.dumps(dataset_json['labels'])}, "
            f"found {json.dumps(trained)}. Train it again, or leave it out with -tr, -p or -c."
        )


def validation_maps(model: Model, folds: Sequence[int], ending: str) -> Maps:
    """Label maps of nnU-Net's final validation, over all folds; raises FileNotFoundError for a fold without."""
    maps: Maps = {}
    if not folds:
        raise FileNotFoundError(
            f"{model.folder}: expected folds 0, 1, ..., found none. Run: {model.training_command(0)}"
        )
    for fold in folds:
        folder = model.validation(fold)
        if not (folder / "summary.json").is_file():  # nnU-Net writes it last
            raise FileNotFoundError(
                f"{model.folder.name}, fold {fold}: expected validation results in {folder}, found none. "
                f"Run: {model.training_command(fold)}\nOr rank other folds with -f, other models with -tr, -p or -c."
            )
        found = case_files(folder, ending)
        twice = maps.keys() & found
        if twice:
            raise ValueError(
                f"{model.folder.name}: expected a case in one fold, found {shorten(sorted(twice))} in several."
            )
        maps.update(found)
    return maps


def require_same_cases(maps: Mapping[Model, Maps]) -> None:
    """Raises FileNotFoundError where models were validated on different cases: their scores cannot be compared."""
    cases = set().union(*maps.values())
    for model, found in maps.items():
        if absent := sorted(cases - found.keys()):
            raise FileNotFoundError(
                f"{model.folder.name}: expected the validation cases of the other models, found no {shorten(absent)}. "
                "Train all on the same splits_final.json and validate them again (nnUNetv2_train ... --val --npz)."
            )


def scored(models: Sequence[Model], maps: Maps, dataset_json: Mapping[str, Any], processes: int) -> Candidate:
    """A candidate and the Dice of its maps on annotated pairs."""
    references = reference_folder(models[0].dataset)
    files = [CaseFiles(case, references / file.name, file) for case, file in sorted(maps.items())]
    table = table_of_sources(dataset_json, list(maps))
    scores = evaluate(files, table, dataset_json, None, processes, joint_name(models))
    return Candidate(tuple(models), pd.Series(summarise(scores, table.labels.names)["dice"]))


def reference_folder(dataset: str) -> Path:
    """Label maps of the annotators: nnU-Net's copy beside the preprocessed data, else the raw ones."""
    preprocessed, raw = preprocessed_folder(dataset), raw_folder(dataset)
    candidates = [folder / name for folder, name in ((preprocessed, "gt_segmentations"), (raw, "labelsTr")) if folder]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"{dataset}: expected label maps in {' or '.join(map(str, candidates))}, found no folder.")


def probability_commands(model: Model, folds: Sequence[int], maps: Maps) -> list[str]:
    """Commands that make the probabilities which an ensemble needs and this model lacks."""
    bare = {file.parent for case, file in maps.items() if not file.with_name(f"{case}.npz").is_file()}
    return [model.training_command(fold) for fold in folds if model.validation(fold) in bare]


def ensemble_maps(pair: Sequence[Model], folds: Sequence[int], maps: Maps, processes: int) -> Maps:
    """Label maps of the averaged probabilities, in nnUNet_results/DATASET/ensembles as nnU-Net would write them."""
    folders = [str(model.folder) for model in pair]
    output = (
        Path(nnUNet_results) / pair[0].dataset / "ensembles" / get_ensemble_name(folders[0], folders[1], tuple(folds))
    )
    ensemble_crossvalidations(folders, str(output), list(folds), max(1, min(processes, len(maps))))
    return {case: output / file.name for case, file in maps.items()}


def inference_commands(models: Sequence[Model], folds: Sequence[int]) -> list[str]:
    """Commands that predict with one model, or with the ensemble of several."""
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
