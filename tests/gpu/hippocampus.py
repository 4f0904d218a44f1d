"""Four arms on Hippocampus, at once on one device: prepared data, training, prediction, Dice on complete labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gpu.steps import Run, Step, conemos, program
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.training.variants import EPOCHS, STOCK, variant

COMPLETE, PARTIAL = "Dataset004_Hippocampus", "Dataset014_HippocampusPartial"
CONFIGURATION, TINY = "3d_fullres", "3d_tiny"


class Arm(NamedTuple):
    """A trainer, and the dataset that it is trained on."""

    trainer: str
    dataset: str


ARMS = {
    "stock_partial": Arm(STOCK, PARTIAL),
    "conditional_film": Arm("ConditionalFiLMTrainer", PARTIAL),
    "label_set": Arm("LabelSetFiLMTrainer", PARTIAL),
    "stock_complete": Arm(STOCK, COMPLETE),
}


def prepare(source: Path, cases: int, tests: int, processes: int) -> None:
    """Make the prepared data below nnUNet_raw and nnUNet_preprocessed from a raw dataset of complete labels.

    The first `cases` are for training and validation, the next `tests` are held out. In the partial copy each case
    keeps one of its labels. Both datasets get the same split, and a configuration for rehearsals on a CPU.
    """
    raw, preprocessed = (Path(os.environ[name]) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    copy_cases(source, raw / COMPLETE, cases, tests)
    plan = ("-d", 4, 14, "-c", CONFIGURATION, "-np", processes, "-npfp", processes)
    for words in (
        conemos("hide", COMPLETE, "--per-case", 1, "-o", PARTIAL),
        program("nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "plan_and_preprocess_entry", *plan),
    ):
        subprocess.run(words, check=True)
    for name in (COMPLETE, PARTIAL):
        shutil.copy(raw / PARTIAL / "splits_final.json", preprocessed / name)
        file = preprocessed / name / "nnUNetPlans.json"
        plans = json.loads(file.read_text())
        plans["configurations"][TINY] = small_configuration(
            plans, CONFIGURATION, features=4, patch=(16, 16, 16), batch=2
        )
        file.write_text(json.dumps(plans, indent=2))


def unprepared() -> Path | None:
    """Return a folder of the prepared data that is missing."""
    raw, preprocessed = (Path(os.environ[name]) for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    needed = (raw / COMPLETE / "imagesTs", raw / COMPLETE / "labelsTs", preprocessed / COMPLETE, preprocessed / PARTIAL)
    return next((folder for folder in needed if not folder.is_dir()), None)


def copy_cases(source: Path, target: Path, cases: int, tests: int) -> None:
    """Copy the first cases of a raw dataset as training cases, and the next ones as test cases."""
    content = json.loads((source / "dataset.json").read_text())
    names = sorted(file.name.removesuffix(content["file_ending"]) for file in (source / "labelsTr").iterdir())
    for part, chosen in (("Tr", names[:cases]), ("Ts", names[cases : cases + tests])):
        for kind in ("images", "labels"):
            (target / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            for name in chosen:
                for file in (source / f"{kind}Tr").glob(f"{name}*"):
                    shutil.copy(file, target / f"{kind}{part}")
    (target / "dataset.json").write_text(json.dumps(content | {"numTraining": cases}, indent=2))


def train(run: Run, epochs: int, device: str, configuration: str, limit: float) -> float:
    """Train, predict and score the four arms with this number of epochs; return the seconds of all that."""
    raw = Path(run.environment["nnUNet_raw"]) / COMPLETE
    seconds = run.do(Step(f"train four arms at once, {epochs} epoch(s) of 250 steps", limit, {
        f"train{epochs}_{name}": program(
            "nnunetv2.run.run_training", "run_training_entry",
            arm.dataset, configuration, 0, "-tr", variant(arm.trainer, epochs), "-device", device,
        )
        for name, arm in ARMS.items()
    }))  # fmt: skip
    found = {name: checkpoint(run, arm, epochs, configuration) for name, arm in ARMS.items()}
    trained = {name: arm for name, arm in ARMS.items() if found[name]}
    seconds += run.do(Step("predict the test cases", limit / 2, {
        f"predict{epochs}_{name}": program(
            "nnunetv2.inference.predict_from_raw_data", "predict_entry_point",
            "-i", raw / "imagesTs", "-o", run.folder / f"predicted{epochs}" / name, "-d", arm.dataset,
            "-tr", variant(arm.trainer, epochs), "-c", configuration, "-f", 0, "-chk", found[name], "-device", device,
            "-npp", 1, "-nps", 1,
        )
        for name, arm in trained.items()
    }))  # fmt: skip
    seconds += run.do(Step("score them against complete labels", limit / 4, {
        f"score{epochs}_{name}": conemos(
            "evaluate", raw / "labelsTs", run.folder / f"predicted{epochs}" / name, "--complete",
            "-djfile", raw / "dataset.json", "-o", run.folder / f"scores{epochs}" / name, "-np", 2,
        )
        for name in trained
    }))  # fmt: skip
    run.say(f"Dice after {epochs} epoch(s):\n{dice_table(run, epochs, found)}")
    return seconds


def checkpoint(run: Run, arm: Arm, epochs: int, configuration: str) -> str:
    """Return the name of the final checkpoint, else of the best one of a training that was ended, else ''."""
    results = Path(run.environment["nnUNet_results"]) / arm.dataset
    folder = results / f"{variant(arm.trainer, epochs)}__nnUNetPlans__{configuration}" / "fold_0"
    return next((name for name in ("checkpoint_final.pth", "checkpoint_best.pth") if (folder / name).is_file()), "")


def dice_table(run: Run, epochs: int, checkpoints: dict[str, str]) -> str:
    """Write and return the mean Dice of each label and arm; arms without scores are left out."""
    rows = []
    for name, chosen in checkpoints.items():
        file = run.folder / f"scores{epochs}" / name / "evaluation.csv"
        if file.is_file():
            means = pd.read_csv(file).groupby("label")["dice"].mean()
            rows.append({"arm": name, **means, "mean": means.mean(), "checkpoint": chosen})
    if not rows:
        return "none"
    table = pd.DataFrame(rows)
    table.to_csv(run.folder / f"dice_{epochs}_epochs.csv", index=False)
    return table.to_string(index=False, float_format="%.3f")


def longest(first: int, seconds: float, left: float) -> int | None:
    """Return the most epochs that fit into the seconds left, if more than the first ones, which took `seconds`."""
    fitting = [epochs for epochs in EPOCHS if epochs > first and 1.1 * seconds * epochs / first < left]
    return max(fitting, default=None)
