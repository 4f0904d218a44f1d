"""Run the whole chain with its real commands on a generated phantom, with stock nnU-Net for comparison.

Three sites annotate one or two of four organs each. Both networks see the same cases and take the same number of steps
of AdamW (with SGD, so few steps sometimes miss the smallest organ). Both are scored on test cases that are annotated
for everything.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
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
from nnunetv2_conemos.demo.report import picture
from nnunetv2_conemos.errors import ExistingFileError
from nnunetv2_conemos.files import exclusive, write_aside, write_json
from nnunetv2_conemos.subprocesses import FOLDERS, environment_below, run_logged
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
    """Runner of the demo's steps, which logs each command separately and shows the progress."""

    def __init__(self, folder: Path, steps: int, console: Console):
        self.folder, self.steps, self.console = folder, steps, console
        self.done, self.start = 0, time.monotonic()
        self.environment = demo_environment(folder, os.environ)
        (folder / "logs").mkdir()

    def announce(self, title: str) -> None:
        """Print that a step begins."""
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
    """Return environment variables for the commands: everything below `folder`, few processes."""
    few = {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2", "nnUNet_compile": "f"}
    return {**environment_below(folder, current), **few}


def with_small_configuration(plans: dict[str, Any], patch: tuple[int, ...]) -> dict[str, Any]:
    """Add the configuration `3d_demo` to plans: the planned 3d_fullres with 8 features and this patch."""
    small = small_configuration(plans, "3d_fullres", features=8, patch=patch, batch=2)
    return {**plans, "configurations": {**plans["configurations"], CONFIGURATION: small}}


@dataclass(frozen=True)
class DemoResult:
    """Result of a demo: mean Dice on the test cases (organs x arms), its picture, and the folder of everything."""

    dice: pd.DataFrame
    picture: Path
    folder: Path


def run_demo(
    folder: Path | str, *, epochs: int = 5, seed: int = 0, device: str = "cpu", overwrite: bool = False
) -> DemoResult:
    """Train stock nnU-Net and ConditionalFiLMTrainer on a generated phantom, test them, and draw their predictions.

    Each step is printed as it begins.

    Args:
        folder: where everything is written.
        epochs: of 250 steps, for both networks.
        seed: of the phantom.
        device: cpu, cuda or mps.
        overwrite: replace an earlier demo in `folder`.

    Raises FileExistsError for a folder that is not empty (with `overwrite` an earlier demo is replaced), and
    CommandError with the end of the log of a command that failed.
    """
    folder = Path(folder).resolve()
    with exclusive(folder):
        make_room(folder, overwrite)
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        chain = Chain(folder, STEPS, Console())
        prepare(chain, seed)
        train_and_test(chain, epochs, device)
        outputs = predictions(folder)
        dice, file = read_dice(outputs), folder / "demo.png"
        drawn = picture(folder / "nnUNet_raw" / DATASET, outputs, dice)
        write_aside(file, lambda aside: drawn.savefig(aside, dpi=110, format="png"))
    return DemoResult(dice, file, folder)


def prepare(chain: Chain, seed: int) -> None:
    """Generate the phantom, declare who annotated what, plan, preprocess and split."""
    raw, preprocessed = (chain.folder / name / DATASET for name in FOLDERS[:2])
    chain.announce(f"generate {3 * CASES_PER_SOURCE} training and {TEST_CASES} test volumes")
    annotated = write_phantom(raw, CASES_PER_SOURCE, TEST_CASES, SHAPE, SPACING, seed=seed)
    file = chain.folder / "annotated.json"
    write_json(file, annotated)
    chain.command("declare who annotated what", "conemos", "declare", DATASET, "--annotated", file)
    chain.command("check environment and dataset", "conemos", "check", DATASET, "-np", "1")
    plan = ("nnUNetv2_plan_and_preprocess", "-d", "901", "-c", "3d_fullres", "-np", "2", "-npfp", "2")
    chain.command("plan and preprocess", *plan)
    chain.announce(f"add the CPU-sized configuration {CONFIGURATION} and the split that both networks share")
    plans = preprocessed / "nnUNetPlans.json"
    write_json(plans, with_small_configuration(json.loads(plans.read_text()), SHAPE))
    table = SourceTable.from_dataset_json(read_dataset_json(preprocessed), raw_cases(raw))
    write_json(preprocessed / "splits_final.json", stratified_split(table))


def train_and_test(chain: Chain, epochs: int, device: str) -> None:
    """Train both networks, predict the test cases and evaluate the predictions."""
    raw = chain.folder / "nnUNet_raw" / DATASET
    trainers = {arm: variant(trainer, epochs, adam=True) for arm, trainer in ARMS.items()}
    for arm, trainer in trainers.items():
        train = ("nnUNetv2_train", DATASET, CONFIGURATION, "0", "-tr", trainer, "-device", device)
        chain.command(f"train {arm}: {epochs * 250} steps", *train)
    outputs = predictions(chain.folder)
    for arm, trainer in trainers.items():
        model = ("-d", DATASET, "-c", CONFIGURATION, "-f", "0", "-tr", trainer, "-device", device)
        files = ("-i", raw / "imagesTs", "-o", outputs[arm])
        chain.command(f"predict: {arm}", "nnUNetv2_predict", *files, *model, "-npp", "1", "-nps", "1")
    for arm, output in outputs.items():
        chain.command(f"evaluate: {arm}", "conemos", "evaluate", raw / "labelsTs", output, "--complete", "-np", "1")


def predictions(folder: Path) -> dict[str, Path]:
    """Return arm -> folder of its predictions of the test cases."""
    return {arm: folder / "predictions" / trainer for arm, trainer in ARMS.items()}


def read_dice(arms: Mapping[str, Path]) -> pd.DataFrame:
    """Read the mean Dice per organ (rows) and arm (columns) from the evaluation beside each arm's predictions."""
    scores = {}
    for arm, folder in arms.items():
        per_label = json.loads((folder / "evaluation.json").read_text())["per_label"]
        scores[arm] = {organ: per_label[organ]["dice"] for organ in ORGANS}
    return pd.DataFrame(scores, dtype=float)


def make_room(folder: Path, overwrite: bool) -> None:
    """Make `folder`, or with `overwrite` delete what an earlier demo wrote there.

    Raises FileExistsError for a folder that holds anything else: a folder of data has subfolders of the same names.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MARKER).is_file():
            raise ExistingFileError(
                f"{folder} is not empty, and no demo of this version wrote it. Name another folder with -o."
            )
        if not overwrite:
            raise ExistingFileError(f"{folder} holds a demo. Pass --overwrite to replace it, or name another with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
    for name in WRITTEN:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
