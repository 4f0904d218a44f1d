"""The folder of a benchmark.

    benchmark.yaml  runs.csv  cases.csv  report.md  report.html  figures/  logs/  test/
    nnUNet_raw/  nnUNet_preprocessed/          Dataset900_Partial, 901_Complete, 101_Only_1, 102_Only_2, ...
    runs/ARM__10epochs__seed0__fold0/          nnUNet_results/, predictions/, costs

Nothing outside it is written; images are only referenced.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.benchmark.config import Recipe, Run
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.text_files import read_object

PARTIAL = "Dataset900_Partial"
MODALITIES = "modalities.json"  # beside the folder of held-out images: case -> modality that its source declares


@dataclass(frozen=True)
class Workspace:
    """The folder of a benchmark, its recipe, and the raw dataset that it uses (`source`)."""

    folder: Path
    recipe: Recipe
    source: Path

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
        """dataset.json of the partially labelled cases."""
        return read_dataset_json(self.raw / PARTIAL)

    @cached_property
    def table(self) -> SourceTable:
        """Who annotated what among the partially labelled cases."""
        return SourceTable.from_dataset_json(self.dataset_json, raw_cases(self.raw / PARTIAL))

    @property
    def labels(self) -> LabelSpace:
        return self.table.labels

    @property
    def plans_file(self) -> Path:
        """The plans of the partially labelled dataset, which all others share."""
        return self.preprocessed / PARTIAL / f"{self.recipe.plans}.json"

    @property
    def splits_file(self) -> Path:
        return self.preprocessed / PARTIAL / "splits_final.json"

    def read_plans(self) -> dict[str, Any]:
        return read_object(self.plans_file)

    def configuration(self, run: Run) -> str:
        """Return the plans configuration of a run: that of its arm, else that of the recipe."""
        return run.arm.configuration or self.recipe.configuration

    def plans_hash(self, configuration: str) -> str:
        """Return a hash of what determines network, patch and preprocessing, to tell configurations apart."""
        plans = PlansManager(self.read_plans())
        resolved = {**plans.get_configuration(configuration).configuration, "plans": plans.plans_name}
        facts = {key: plans.plans[key] for key in ("transpose_forward", "foreground_intensity_properties_per_channel")}
        return hashlib.sha256(json.dumps([resolved, facts], sort_keys=True).encode()).hexdigest()[:12]
