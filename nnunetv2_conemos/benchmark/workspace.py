"""The folder of a benchmark: its datasets, and the plans that all of them share.

    benchmark.yaml  runs.csv  cases.csv  report.md  report.html  figures/  logs/  test/
    nnUNet_raw/  nnUNet_preprocessed/          Dataset900_Partial, 901_Complete, 101_Only_1, 102_Only_2, ...
    runs/ARM__10epochs__seed0__fold0/          nnUNet_results/, predictions/, costs

Nothing outside it is written; images are only referenced.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.benchmark.config import Fold, Recipe, Run
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.datasets.splits import stratified_split
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.subprocesses import run_logged

PARTIAL, CEILING, COMPLETED = "Dataset900_Partial", "Dataset901_Complete", "Dataset902_Completed"
FINGERPRINT = "dataset_fingerprint.json"
MODALITIES = "modalities.json"  # beside the folder of held-out images: case -> modality that its source declares


@dataclass
class Workspace:
    """A benchmark's folder, its recipe, and what its commands need.

    `lock` is a file descriptor that commands inherit; `tell` is shown what goes on.
    """

    folder: Path
    recipe: Recipe
    source: Path
    device: str
    processes: int
    environment: Mapping[str, str]
    lock: int | None = None
    tell: Callable[[str], object] = field(default=lambda _: None)

    @property
    def raw(self) -> Path:
        return self.folder / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        return self.folder / "nnUNet_preprocessed"

    def run_folder(self, run: Run) -> Path:
        return self.folder / "runs" / run.folder

    @cached_property
    def dataset_json(self) -> dict[str, Any]:
        return read_dataset_json(self.raw / PARTIAL)

    @cached_property
    def table(self) -> SourceTable:
        return SourceTable.from_dataset_json(self.dataset_json, raw_cases(self.raw / PARTIAL))

    @property
    def labels(self) -> LabelSpace:
        return self.table.labels

    @property
    def plans(self) -> dict[str, Any]:
        return json.loads((self.preprocessed / PARTIAL / f"{self.recipe.plans}.json").read_text())

    def plans_hash(self, configuration: str) -> str:
        """Tells configurations apart whose networks, patches or preprocessing differ."""
        plans = PlansManager(self.plans)
        resolved = {**plans.get_configuration(configuration).configuration, "plans": plans.plans_name}
        facts = {key: plans.plans[key] for key in ("transpose_forward", "foreground_intensity_properties_per_channel")}
        return hashlib.sha256(json.dumps([resolved, facts], sort_keys=True).encode()).hexdigest()[:12]

    def command(self, log: str, *words: str | Path, variables: Mapping[str, str] | None = None) -> None:
        """Run a command within the benchmark's folders; its log is named `log`. Raises CommandError."""
        (self.folder / "logs").mkdir(exist_ok=True)
        environment = {**self.environment, **(variables or {})}
        file = self.folder / "logs" / f"{log}.log"
        run_logged([str(word) for word in words], file, environment, self.tell, self.lock)

    def preprocess(self, name: str, configuration: str, preprocessed: Path | None = None, **variables: str) -> None:
        """Preprocess a dataset for a configuration, if that was not done."""
        folder = (preprocessed or self.preprocessed) / name
        identifier = PlansManager(self.plans).get_configuration(configuration).data_identifier
        finished = folder / f"{identifier}.finished"
        if not finished.is_file():
            which = ("-d", name[7:10], "-plans_name", self.recipe.plans, "-c", configuration)
            words = (*which, "-np", str(self.processes))
            self.command(f"preprocess_{name}_{configuration}", "nnUNetv2_preprocess", *words, variables=variables)
            finished.touch()

    def share_plans(self, name: str, fold: Fold, raw: Path | None = None, preprocessed: Path | None = None) -> None:
        """Plans and split of the partially labelled dataset for another one of its cases; raises SourceError."""
        folder = (preprocessed or self.preprocessed) / name
        folder.mkdir(parents=True, exist_ok=True)
        if fold != "all":
            cases = set(raw_cases((raw or self.raw) / name))
            splits = json.loads((self.preprocessed / PARTIAL / "splits_final.json").read_text())
            own = [
                {part: [case for case in split[part] if case in cases] for part in ("train", "val")} for split in splits
            ]
            if not own[fold]["train"]:
                raise SourceError(f"{name}: fold {fold} has no training case.")
            write_json(folder / "splits_final.json", with_validation(own))
        write_json(folder / "dataset.json", read_dataset_json((raw or self.raw) / name))
        write_json(folder / f"{self.recipe.plans}.json", {**self.plans, "dataset_name": name})
        shutil.copyfile(self.preprocessed / PARTIAL / FINGERPRINT, folder / FINGERPRINT)  # training wants the file


def prepare(place: Workspace) -> None:
    """Plan for the partially labelled dataset, and split it; what is done stays."""
    recipe = place.recipe
    for folder in (place.preprocessed, place.folder / "runs"):
        folder.mkdir(parents=True, exist_ok=True)
    folder = place.preprocessed / PARTIAL
    if not (folder / f"{recipe.plans}.json").is_file():
        words = ("-pl", recipe.planner, "-overwrite_plans_name", recipe.plans, "-npfp", str(place.processes))
        place.command("plan", "nnUNetv2_plan_and_preprocess", "-d", "900", "--no_pp", *words)
    add_configurations(place)
    if set(recipe.folds) == {"all"}:
        return
    if not (folder / "splits_final.json").is_file():
        write_json(folder / "splits_final.json", stratified_split(place.table))
    folds = len(json.loads((folder / "splits_final.json").read_text()))
    if beyond := [fold for fold in recipe.folds if fold != "all" and not 0 <= fold < folds]:
        raise ValueError(f"fold {beyond[0]}: expected one of the {folds} folds of splits_final.json, 0 to {folds - 1}.")


def add_configurations(place: Workspace) -> None:
    """Add the recipe's configurations to the plans; raises ValueError for one that is used but does not exist."""
    plans = place.plans
    for name, wanted in place.recipe.configurations.items():
        entry = small_configuration(plans, wanted.base, wanted.features, wanted.patch_size, wanted.batch_size)
        plans["configurations"][name] = entry | ({"conemos": wanted.conemos} if wanted.conemos else {})
    known = plans["configurations"]
    named = [name for arm in place.recipe.arms for name in (arm.configuration, arm.prediction) if name]
    for name in [place.recipe.configuration, *named]:
        if name not in known:
            raise ValueError(f"configuration '{name}' does not exist. The plans have {', '.join(known)}.")
    write_json(place.preprocessed / PARTIAL / f"{place.recipe.plans}.json", plans)


def with_validation(splits: list[dict[str, list[str]]]) -> list[dict[str, list[str]]]:
    """Folds without a validation case get one: nnU-Net wants it, and the last checkpoint predicts whatever it is."""
    return [{"train": fold["train"], "val": fold["val"] or fold["train"][:1]} for fold in splits]
