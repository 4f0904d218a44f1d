"""`conemos demo`: the whole chain by its real commands on a generated phantom, with stock nnU-Net beside it.

Three sites annotate one or two of four organs each. Both networks see the same cases and take the same number of steps;
both are scored on test cases that are annotated for everything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from nnunetv2_conemos import env
from nnunetv2_conemos.datasets import raw_cases, read_dataset_json, write_json
from nnunetv2_conemos.demo_report import dice_table, picture
from nnunetv2_conemos.phantom import ORGANS, write_phantom
from nnunetv2_conemos.sources import SourceTable
from nnunetv2_conemos.splits import stratified_split

DATASET = "Dataset901_Phantom"
CONFIGURATION = "3d_demo"
CASES_PER_SOURCE, TEST_CASES = 6, 4
SHAPE, SPACING = (16, 40, 40), (9.0, 4.0, 4.0)  # one patch is a whole volume: each sample shows all organs
ARMS = {"stock nnU-Net": "nnUNetTrainer", "conditional FiLM": "ConditionalFiLMTrainer"}
STEPS = 5 + 3 * len(ARMS)
EPOCHS = (1, 5, 10, 20, 50, 100, 250)  # variants that nnU-Net and this package both have
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
WRITTEN = (*FOLDERS, "logs", "predictions", "annotated.json", "demo.png")  # below the folder of the demo


class CommandError(RuntimeError):
    """A command of the chain ended with an error."""


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
        with log.open("w") as file, self.console.status("starting") as status:
            program = shutil.which(words[0], path=self.environment["PATH"]) or words[0]
            process = subprocess.Popen([program, *words[1:]], stdout=file, stderr=file, env=self.environment)
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    status.update(Text(last_line(log)[: self.console.width - 4]))
            finally:
                process.kill()  # nothing to do unless we were interrupted
        if process.returncode:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise CommandError(f"`{' '.join(words)}` ended with status {process.returncode}; {log} ends with\n{tail}")
        return log


def last_line(log: Path) -> str:
    """The last line of a log, or what a progress bar wrote over it last."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "starting")


def demo_environment(folder: Path, current: Mapping[str, str]) -> dict[str, str]:
    """Variables for the commands: nnU-Net's folders below `folder`, few processes, our trainers and commands."""
    return {
        **current,
        **{name: str(folder / name) for name in FOLDERS},
        env.VARIABLE: env.trainer_path(None, env.doorway_folder()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), current.get("PATH", "")]),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "2",
        "nnUNet_compile": "f",
        "OMP_WAIT_POLICY": "passive",  # augmentation and other programs share the cores with torch's threads
        "COLUMNS": "120",
        "MPLBACKEND": "Agg",
    }


def with_small_configuration(plans: dict[str, Any], patch: tuple[int, ...], features: int = 8) -> dict[str, Any]:
    """Plans with one more configuration, `3d_demo`: the planned 3d_fullres with fewer features and this patch.

    Stages whose feature map would get smaller than 3 voxels along an axis are dropped; the strides of the others must
    divide `patch`. nnU-Net merges `inherits_from` key by key at the top only, so the architecture is written in full.
    """
    plans = deepcopy(plans)
    architecture = deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    arguments = architecture["arch_kwargs"]
    shrunk = np.array(patch) / np.cumprod(arguments["strides"], axis=0)  # [stages, 3]
    stages = int((shrunk >= 3).all(axis=1).sum())
    arguments["n_stages"] = stages
    arguments["features_per_stage"] = [min(features * 2**stage, 320) for stage in range(stages)]
    for key in ("kernel_sizes", "strides", "n_conv_per_stage"):
        arguments[key] = arguments[key][:stages]
    arguments["n_conv_per_stage_decoder"] = arguments["n_conv_per_stage_decoder"][: stages - 1]
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "patch_size": list(patch),
        "batch_size": 2,
        "architecture": architecture,
    }
    return plans


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
    suffix = trainer_suffix(epochs)
    for arm, trainer in ARMS.items():
        train = ("nnUNetv2_train", DATASET, CONFIGURATION, "0", "-tr", trainer + suffix, "-device", device)
        chain.command(f"train {arm}: {epochs * 250} steps", *train)
    for arm, trainer in ARMS.items():
        model = ("-d", DATASET, "-c", CONFIGURATION, "-f", "0", "-tr", trainer + suffix, "-device", device)
        few = ("-npp", "1", "-nps", "1")
        output = predictions(folder)[arm]
        chain.command(f"predict: {arm}", "nnUNetv2_predict", "-i", raw / "imagesTs", "-o", output, *model, *few)
    for arm, output in predictions(folder).items():
        chain.command(f"evaluate: {arm}", "conemos", "evaluate", raw / "labelsTs", output, "--complete", "-np", "1")
    return read_dice(predictions(folder))


def trainer_suffix(epochs: int) -> str:
    """How nnU-Net names its trainers of other lengths."""
    return "_1epoch" if epochs == 1 else f"_{epochs}epochs"


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
    """Refuse a folder that holds anything, or with `overwrite` delete what an earlier demo wrote there."""
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty. Say --overwrite, or name another folder with -o.")
    for name in WRITTEN:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", dest="folder", type=Path, default=Path("conemos_demo"), metavar="FOLDER", help="[%(default)s]"
    )
    epochs_help = "of 250 steps for both networks [%(default)s: at most 10 minutes on two cores]"
    parser.add_argument("--epochs", type=int, choices=EPOCHS, default=5, help=epochs_help)
    parser.add_argument("--seed", type=int, default=0, help="of the phantom [%(default)s]")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in FOLDER")


def run(args: argparse.Namespace) -> int:
    console = Console()
    folder = args.folder.resolve()
    make_room(folder, args.overwrite)
    try:
        dice = demo(folder, args.epochs, args.seed, args.device, console)
    except CommandError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    picture(folder / "nnUNet_raw" / DATASET, predictions(folder), dice).savefig(folder / "demo.png", dpi=110)
    console.print(dice_table(dice))
    console.print(
        f"Stock nnU-Net takes an organ that a site did not annotate for background and forgets it.\n"
        f"Picture: {folder / 'demo.png'}\nEverything else: {folder}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0
