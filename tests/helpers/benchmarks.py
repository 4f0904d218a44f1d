"""A benchmark without its hours: what its commands leave behind, at once."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK
from raw_worlds import read_nifti, write_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.benchmark.config import Recipe
from nnunetv2_conemos.benchmark.run import BenchmarkResult, run_benchmark
from nnunetv2_conemos.benchmark.runner import Runner
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.subprocesses import CommandError

FOUND = {"vanilla": ["liver"]}  # arm -> labels that its stand-in finds; others: all


class StandIn:
    """Takes the place of `Runner.run`; `base` holds nnU-Net's folders, `done` the logs of the commands.

    `fail_at` and `stop_at`: a part of the log of a command that fails, or is interrupted. Evaluation is the real one.
    """

    def __init__(self, base: Path):
        self.base, self.done, self.trained = base, [], []
        self.fail_at: str | None = None
        self.stop_at: str | None = None

    @property
    def raw(self) -> Path:
        return self.base / "nnUNet_raw/Dataset901_Phantom"

    @property
    def bench(self) -> Path:
        return self.base / "bench"

    @property
    def runs(self) -> pd.DataFrame:
        return pd.read_csv(self.bench / "runs.csv").set_index(["arm", "seed"])

    @property
    def trained_on(self) -> list[str]:
        """Datasets, in the order in which they were trained on."""
        return [log.partition("Dataset")[2].removesuffix("_train") for log in self.done if log.endswith("_train")]

    def benchmark(self, *arms: object, **recipe: object) -> BenchmarkResult:
        """Run a benchmark on the phantom: one seed, one epoch."""
        few = {"dataset": "901", "seeds": (0,), "epochs": (1,), "arms": arms or ("vanilla",)}
        return run_benchmark(Recipe.model_validate({**few, **recipe}), self.bench, processes=1)

    def command(self, *more: str) -> int:
        """Run a benchmark by the command; returns its exit status."""
        return cli.main(
            [
                "benchmark",
                "901",
                "-o",
                str(self.bench),
                "--epochs",
                "1",
                "-device",
                "cpu",
                "-np",
                "1",
                *more,
            ]
        )

    def __call__(self, runner: Runner, log: str, *words: str | Path, variables: dict | None = None) -> None:
        self.done.append(log)
        if self.stop_at and self.stop_at in log:
            raise KeyboardInterrupt
        if self.fail_at and self.fail_at in log:
            log = "Epoch 3\ntorch.OutOfMemoryError: CUDA out of memory\nConnectionResetError: a worker's\nexit\n"
            raise CommandError(f"`{words[0]}` ended with status 1; log ends with\nexit", log)
        raw = runner.folder / "nnUNet_raw"
        if words[0] == "nnUNetv2_plan_and_preprocess":
            self.plan(runner.folder / "nnUNet_preprocessed/Dataset900_Partial", raw)
        elif words[:2] == ("conemos", "complete"):
            target = Path((variables or {})["nnUNet_raw"]) / "Dataset902_Completed"
            shutil.copytree(raw / "Dataset900_Partial", target)
            content = read_dataset_json(target)
            write_json(target / "dataset.json", {key: content[key] for key in content if key != "sources"})
        elif words[0] == "conemos":
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("nnUNet_raw", str(raw))
                assert cli.main([*map(str, words[1:])]) == 0
        elif "nnunetv2_conemos.benchmark.scaling" in words:
            costs = {"trainer": words[8:], "labels": 2, "step_s": 0.1, "predict_s": 0.2}
            pd.DataFrame(costs).to_csv(words[3], index=False)
        elif "train" in words:
            self.train(
                Path(words[3]), *map(str, words[6:10]), preprocessed=Path((variables or {})["nnUNet_preprocessed"])
            )
        elif "predict" in words:
            self.predict(list(map(str, words)))
            write_json(Path(words[3]), {"predict_s": 3.0, "predict_peak_mib": 20.0})

    def plan(self, folder: Path, raw: Path) -> None:
        folder.mkdir()
        template = self.base / "nnUNet_preprocessed/Dataset901_Phantom"
        plans = json.loads((template / "nnUNetPlans.json").read_text())
        shutil.copy(template / "dataset_fingerprint.json", folder)
        write_json(folder / "nnUNetPlans.json", {**plans, "dataset_name": folder.name})
        shutil.copy(raw / folder.name / "dataset.json", folder)

    def train(
        self, report: Path, dataset: str, configuration: str, fold: str, trainer: str, preprocessed: Path
    ) -> None:
        """Check that everything is there that nnU-Net needs, and leave a model folder."""
        self.trained.append((trainer, configuration))
        needed = preprocessed / dataset
        for name in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
            assert (needed / name).is_file(), "nnU-Net needs it"
        assert fold == "all" or (needed / "splits_final.json").is_file()
        write_json(report, {"step_s": 0.1, "parameters": 1000, "train_peak_mib": 10.0})
        model = report.parent
        (model / f"fold_{fold}").mkdir()
        shutil.copy(needed / "nnUNetPlans.json", model / "plans.json")

    def predict(self, words: list[str]) -> None:
        """Write the truth, as far as the arm finds it."""
        option = dict(pairwise(words))
        output, images = Path(option["-o"]), Path(option["-i"])
        output.mkdir(parents=True)
        truth = images.parent / images.name.replace("images", "labels")
        labels = read_dataset_json(self.raw)["labels"]
        found = FOUND.get(output.parent.name.partition("__")[0]) or list(labels)
        only = int(output.name.partition("_")[2] or 0)
        for file in truth.glob("*.nii.gz"):
            predicted = read_nifti(file)
            if only:
                own = (predicted == only).astype(np.float32)
                np.savez(output / f"{file.name[:-7]}.npz", probabilities=np.stack([1 - own, own]))
                predicted = own.astype(np.uint8)
            kept = np.isin(predicted, [labels[name] for name in found]) | bool(only)
            write_nifti(output / file.name, (predicted * kept).astype(np.uint8), spacing=spacing_of(file))


def spacing_of(file: Path) -> tuple[float, ...]:
    return SimpleITK.ReadImage(str(file)).GetSpacing()
