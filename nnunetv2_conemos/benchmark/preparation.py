"""Plan, split and preprocess the datasets of a benchmark; all of them share the plans of the partially labelled one."""

from __future__ import annotations

import shutil
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.benchmark.config import Fold, Recipe
from nnunetv2_conemos.benchmark.runner import Runner
from nnunetv2_conemos.benchmark.workspace import PARTIAL, Workspace
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.datasets.splits import Fold as SplitFold
from nnunetv2_conemos.datasets.splits import read_splits, stratified_split
from nnunetv2_conemos.errors import InputError, SourceError
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.text_files import read_object

FINGERPRINT = "dataset_fingerprint.json"


def prepare(workspace: Workspace, runner: Runner) -> None:
    """Plan and split the partially labelled dataset, unless that was done.

    Raises ValueError for a configuration or a fold that does not exist.
    """
    recipe = workspace.recipe
    for folder in (workspace.preprocessed, workspace.folder / "runs"):
        folder.mkdir(parents=True, exist_ok=True)
    if not workspace.plans_file.is_file():
        words = ("-pl", recipe.planner, "-overwrite_plans_name", recipe.plans, "-npfp", str(runner.processes))
        runner.run("plan", "nnUNetv2_plan_and_preprocess", "-d", PARTIAL[7:10], "--no_pp", *words)
    add_configurations(workspace.plans_file, recipe)
    if set(recipe.folds) == {"all"}:
        return
    if not workspace.splits_file.is_file():
        write_json(workspace.splits_file, stratified_split(workspace.table))
    folds = len(read_splits(workspace.splits_file, workspace.table))
    if beyond := [fold for fold in recipe.folds if fold != "all" and not 0 <= fold < folds]:
        raise InputError(f"fold {beyond[0]}: expected one of the {folds} folds of splits_final.json, 0 to {folds - 1}.")


def add_configurations(file: Path, recipe: Recipe) -> None:
    """Add the recipe's configurations to plans; raises ValueError for one that is used but does not exist."""
    plans = read_object(file)
    for name, wanted in recipe.configurations.items():
        entry = small_configuration(plans, wanted.base, wanted.features, wanted.patch_size, wanted.batch_size)
        plans["configurations"][name] = entry | ({"conemos": wanted.conemos} if wanted.conemos else {})
    known = plans["configurations"]
    named = [name for arm in recipe.arms for name in (arm.configuration, arm.prediction) if name]
    for name in [recipe.configuration, *named]:
        if name not in known:
            raise InputError(f"configuration '{name}' does not exist. The plans have {', '.join(known)}.")
    write_json(file, plans)


def share_plans(
    workspace: Workspace, name: str, fold: Fold, raw: Path | None = None, preprocessed: Path | None = None
) -> None:
    """Copy plans and split of the partially labelled dataset to another dataset of the same cases.

    `raw` and `preprocessed` are the folders of its datasets, by default the benchmark's. Raises SourceError where no
    case of the fold is left to train on.
    """
    raw, folder = raw or workspace.raw, (preprocessed or workspace.preprocessed) / name
    folder.mkdir(parents=True, exist_ok=True)
    if fold != "all":
        own = restricted(read_splits(workspace.splits_file, workspace.table), set(raw_cases(raw / name)))
        if not own[fold]["train"]:
            raise SourceError(f"{name}: fold {fold} has no training case.")
        write_json(folder / "splits_final.json", with_validation(own))
    write_json(folder / "dataset.json", read_dataset_json(raw / name))
    write_json(folder / workspace.plans_file.name, {**workspace.read_plans(), "dataset_name": name})
    shutil.copyfile(workspace.preprocessed / PARTIAL / FINGERPRINT, folder / FINGERPRINT)  # nnU-Net copies it


def restricted(splits: list[SplitFold], cases: set[str]) -> list[SplitFold]:
    """Keep these cases of every fold."""
    return [{part: [case for case in fold[part] if case in cases] for part in ("train", "val")} for fold in splits]


def with_validation(splits: list[SplitFold]) -> list[SplitFold]:
    """Add a validation case to folds that have none: nnU-Net needs one; the last checkpoint does not depend on it."""
    return [{"train": fold["train"], "val": fold["val"] or fold["train"][:1]} for fold in splits]


def preprocess(
    workspace: Workspace,
    runner: Runner,
    name: str,
    configuration: str,
    preprocessed: Path | None = None,
    variables: dict[str, str] | None = None,
) -> None:
    """Preprocess a dataset for a configuration, unless that was done."""
    folder = (preprocessed or workspace.preprocessed) / name
    identifier = PlansManager(workspace.read_plans()).get_configuration(configuration).data_identifier
    finished = folder / f"{identifier}.finished"
    if not finished.is_file():
        which = ("-d", name[7:10], "-plans_name", workspace.recipe.plans, "-c", configuration)
        words = (*which, "-np", str(runner.processes))
        runner.run(f"preprocess_{name}_{configuration}", "nnUNetv2_preprocess", *words, variables=variables)
        finished.touch()
