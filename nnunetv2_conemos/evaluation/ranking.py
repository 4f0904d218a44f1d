"""Rank trained configurations and their pairwise ensembles by cross-validation on annotated pairs.

nnUNetv2_find_best_configuration rescores the validation maps for every label in every case: a correct organ where
nobody annotated it counts as Dice 0, so a network that finds it is penalised. It may also choose
keep-largest-component, which deletes organs. Here the score is the mean over labels of the mean Dice over annotated
cases, and there is no postprocessing. Ensembles are nnU-Net's own.
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
from nnunetv2.paths import nnUNet_results

from nnunetv2_conemos.datasets.dataset_json import LabelMaps, read_checked
from nnunetv2_conemos.datasets.folders import preprocessed_folder, raw_folder
from nnunetv2_conemos.errors import MissingFileError
from nnunetv2_conemos.evaluation.evaluate import known_dataset, table_of_sources
from nnunetv2_conemos.evaluation.metrics import summarise
from nnunetv2_conemos.evaluation.models import (
    Maps,
    Model,
    ensemble_maps,
    find_models,
    inference_commands,
    joint_name,
    probability_commands,
    require_labels_of_dataset,
    require_same_cases,
    validation_maps,
)
from nnunetv2_conemos.evaluation.scoring import CaseFiles, score_cases
from nnunetv2_conemos.files import exclusive, write_json

RESULT = "conemos_best.json"


class Candidate(NamedTuple):
    """One model, or an ensemble of two; `dice` is the mean over annotated cases per label (NaN without a value)."""

    models: tuple[Model, ...]
    dice: pd.Series

    @property
    def name(self) -> str:
        return joint_name(self.models)

    @property
    def mean(self) -> float:
        """Mean over the labels that have a value."""
        return float(self.dice.mean())


@dataclass(frozen=True)
class Ranking:
    """Trained models and their ensembles, best first.

    `commands` predict with the best; `not_ranked`: ensembles without probabilities -> the commands that write them;
    `file`: where the ranking was written.
    """

    folds: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    commands: tuple[str, ...]
    not_ranked: Mapping[str, list[str]]
    file: Path

    @property
    def dice(self) -> pd.DataFrame:
        """Dice per label (rows) of each candidate (columns), best first."""
        return pd.DataFrame({candidate.name: candidate.dice for candidate in self.candidates})


def rank(
    dataset: str | int,
    *,
    trainers: Collection[str] | None = None,
    plans: Collection[str] | None = None,
    configurations: Collection[str] | None = None,
    folds: Collection[int] | None = None,
    ensembling: bool = True,
    processes: int = 1,
) -> Ranking:
    """Rank the models trained on a dataset, and their pairwise ensembles, by cross-validation on annotated pairs.

    The ranking is written to nnUNet_results/DATASET/conemos_best.json.

    Args:
        dataset: name or id.
        trainers, plans, configurations: of the models to rank; None: all that were trained.
        folds: whose validation cases count; None: all that were trained.
        ensembling: rank ensembles of two models as well.
        processes: how many score cases; more than one requires a script with `if __name__ == "__main__":`.

    Raises FileNotFoundError for models or validation results that are missing, SourceError for models that were trained
    for other labels.
    """
    name, folder = known_dataset(dataset)
    models = find_models(name, trainers, plans, configurations)
    chosen = tuple(sorted(set(folds or set().union(*(model.folds for model in models)))))
    candidates, not_ranked = rank_models(
        models, chosen, read_checked(folder / "dataset.json", LabelMaps), ensembling, processes
    )
    commands = inference_commands(candidates[0].models, chosen)
    file = Path(nnUNet_results) / name / RESULT
    entries = [entry_json(place, candidate) for place, candidate in enumerate(candidates, start=1)]
    with exclusive(file):
        write_json(file, {"folds": chosen, "commands": commands, "ranking": entries, "not_ranked": not_ranked})
    return Ranking(chosen, tuple(candidates), tuple(commands), not_ranked, file)


def rank_models(
    models: Sequence[Model], folds: Sequence[int], dataset_json: Mapping[str, Any], ensembling: bool, processes: int
) -> tuple[list[Candidate], dict[str, list[str]]]:
    """Score and sort candidates, best first (ties: the simpler first); return ensembles without probabilities apart.

    Raises FileNotFoundError for missing validation results, SourceError for labels other than the dataset's.
    """
    ending = dataset_json["file_ending"]
    for model in models:
        require_labels_of_dataset(model, folds, dataset_json)
    maps = {model: validation_maps(model, folds, ending) for model in models}
    require_same_cases(maps)
    table = table_of_sources(dataset_json, list(maps[models[0]]))
    references = reference_folder(models[0].dataset)

    def scored(members: Sequence[Model], predicted: Maps) -> Candidate:
        files = [CaseFiles(case, references / file.name, file) for case, file in sorted(predicted.items())]
        scores = score_cases(files, table, dataset_json, None, processes, joint_name(members))
        return Candidate(tuple(members), pd.Series(summarise(scores, table.labels.names)["dice"]))

    candidates = [scored([model], maps[model]) for model in models]
    lacking = {}
    for pair in combinations(models, 2) if ensembling else ():
        commands = [command for model in pair for command in probability_commands(model, folds, maps[model])]
        if commands:
            lacking[joint_name(pair)] = commands
        else:
            candidates.append(scored(pair, ensemble_maps(pair, folds, maps[pair[0]], processes)))
    return sorted(candidates, key=lambda candidate: -np.nan_to_num(candidate.mean, nan=-1)), lacking


def reference_folder(dataset: str) -> Path:
    """Find the annotated label maps: nnU-Net's copy beside the preprocessed data, else the raw ones."""
    preprocessed, raw = preprocessed_folder(dataset), raw_folder(dataset)
    candidates = [folder / name for folder, name in ((preprocessed, "gt_segmentations"), (raw, "labelsTr")) if folder]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise MissingFileError(f"{dataset}: expected label maps in {' or '.join(map(str, candidates))}, found no folder.")


def entry_json(place: int, candidate: Candidate) -> dict[str, Any]:
    """Return one entry of the ranking as JSON; None where there is no value."""
    per_label = json.loads(str(candidate.dice.to_json(double_precision=15)))
    dice = None if np.isnan(candidate.mean) else candidate.mean
    return {
        "rank": place,
        "models": [asdict(model) for model in candidate.models],
        "dice": dice,
        "per_label": per_label,
    }
