"""`conemos demo`: the whole chain by its real commands on a generated phantom, with stock nnU-Net beside it.

Three sites annotate one or two of four organs each. Both networks see the same cases and take the same number of steps
of AdamW (SGD, in so few, sometimes misses the smallest organ); both are scored on test cases that are annotated for
everything.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.phantom import ORGANS, write_phantom
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.datasets.splits import stratified_split
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.subprocesses import FOLDERS, own_environment, run_logged
from nnunetv2_conemos.training.variants import variant

DATASET = "Dataset901_Phantom"
CONFIGURATION = "3d_demo"
CASES_PER_SOURCE, TEST_CASES = 6, 4
SHAPE, SPACING = (16, 40, 40), (9.0, 4.0, 4.0)  # one patch is a whole volume: each sample shows all organs
ARMS = {"stock nnU-Net": "nnUNetTrainer", "conditional FiLM": "ConditionalFiLMTrainer"}
STEPS = 5 + 3 * len(ARMS)
MARKER = ".conemos_demo"  # file in a folder that a demo was written to
WRITTEN = (*FOLDERS, "logs", "predictions", "annotated.json", "demo.png")  # below the folder of the demo


class Chain:
    """Runs the steps of the demo one after the other, each command with a log of its own, and says how far it is."""

    def __init__(self, folder: Path, steps: int, console: Console):
        self.folder, self.steps, self.console = folder, steps, console
        self.done, self.start = 0, time.monotonic()
        self.environment = demo_environment(folder, os.environ)
        (folder / "logs").mkdir()

    def announce(self, title: str) -> None:
        self.done += 1
        elapsed = time.strftime("%M:%S", time.gmtime(time.monotonic() - self.start))
        self.console.print(f"[bold]{elapsed}  {self.done:2}/{self.steps}  {title}")

    def command(self, title: str, *command: str | Path) -> Path:
        """Run one command and return its log; raises CommandError with the end of the log."""
        self.announce(title)
        words = [str(word) for word in command]
        self.console.print(f"              {' '.join(words)}", style="dim", markup=False, highlight=False)
        log = self.folder / "logs" / f"{self.done:02}_{Path(words[0]).name}.log"
        with self.console.status("starting") as status:
            run_logged(words, log, self.environment, lambda line: status.update(Text(line[: self.console.width - 4])))
        return log


def demo_environment(folder: Path, current: Mapping[str, str]) -> dict[str, str]:
    """Variables for the commands: everything below `folder`, few processes."""
    few = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2", "nnUNet_compile": "f"}
    return {**own_environment(folder, current), **few}


def with_small_configuration(plans: dict[str, Any], patch: tuple[int, ...]) -> dict[str, Any]:
    """Plans with one more configuration, `3d_demo`: the planned 3d_fullres with 8 features and this patch."""
    small = small_configuration(plans, "3d_fullres", features=8, patch=patch, batch=2)
    return {**plans, "configurations": {**plans["configurations"], CONFIGURATION: small}}


def demo(folder: Path, epochs: int, seed: int, device: str, console: Console) -> pd.DataFrame:
    """Run the chain below an empty `folder`; returns mean Dice on the test cases, organs x arms.

    Raises CommandError with the end of the log of the command that failed.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    chain = Chain(folder, STEPS, console)
    raw, preprocessed = (folder / name / DATASET for name in FOLDERS[:2])
    chain.announce(f"generate {3 * CASES_PER_SOURCE} training and {TEST_CASES} test volumes")
    annotated = write_phantom(raw, CASES_PER_SOURCE, TEST_CASES, SHAPE, SPACING, seed=seed)
    write_json(folder / "annotated.json", annotated)
    chain.command("declare who annotated what", "conemos", "declare", DATASET, "--annotated", folder / "annotated.json")
    chain.command("check environment and dataset", "conemos", "check", DATASET, "-np", "1")
    plan = ("nnUNetv2_plan_and_preprocess", "-d", "901", "-c", "3d_fullres", "-np", "2", "-npfp", "2")
    chain.command("plan and preprocess", *plan)
    chain.announce(f"add the CPU-sized configuration {CONFIGURATION} and the split that both networks share")
    plans = preprocessed / "nnUNetPlans.json"
    write_json(plans, with_small_configuration(json.loads(plans.read_text()), SHAPE))
    table = SourceTable.from_dataset_json(read_dataset_json(preprocessed), raw_cases(raw))
    write_json(preprocessed / "splits_final.json", stratified_split(table))
    trainers = {arm: variant(trainer, epochs, adam=True) for arm, trainer in ARMS.items()}
    for arm, trainer in trainers.items():
        train = ("nnUNetv2_train", DATASET, CONFIGURATION, "0", "-tr", trainer, "-device", device)
        chain.command(f"train {arm}: {epochs * 250} steps", *train)
    for arm, trainer in trainers.items():
        model = ("-d", DATASET, "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-device", device)
        few = ("-npp", "1", "-nps", "1")
        output = predictions(folder)[arm]
        chain.command(f"predict: {arm}", "nnUNetv2_predict", "-i", raw / "imagesTs", "-o", output, *model, *few)
    for arm, output in predictions(folder).items():
        chain.command(f"evaluate: {arm}", "conemos", "evaluate", raw / "labelsTs", output, "--complete", "-np", "1")
    return read_dice(predictions(folder))


def predictions(folder: Path) -> dict[str, Path]:
    """Arm -> folder of its predictions of the test cases."""
    return {arm: folder / "predictions" / trainer for arm, trainer in ARMS.items()}


def read_dice(arms: Mapping[str, Path]) -> pd.DataFrame:
    """Mean Dice per organ (rows) and arm (columns), from the evaluation beside the predictions of each arm."""
    scores = {}
    for arm, folder in arms.items():
        per_label = json.loads((folder / "evaluation.json").read_text())["per_label"]
        scores[arm] = {organ: per_label[organ]["dice"] for organ in ORGANS}
    return pd.DataFrame(scores, dtype=float)


def make_room(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything, or with `overwrite` delete what an earlier demo wrote there.

    Only what is marked as a demo's: the folder of somebody's data has subfolders of the same names.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise FileExistsError(
                f"{folder} is not empty, and no demo of this version wrote it. Name another folder with -o."
            )
        if not overwrite:
            raise FileExistsError(f"{folder} holds a demo. Say --overwrite to replace it, or name another with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    for name in WRITTEN:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
