"""`python -m many -o FOLDER --cases 1000 10000`: what the tools cost for this many generated cases.

For each number of cases two datasets, each annotated for one of two labels, are merged, checked, completed by a model
(of `--complete` cases at most) and evaluated, all by the real commands. A table, also as many.csv, holds the wall time,
the processor time of all processes, and the largest memory of one process. A second call measures only what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK
from paths import ROOT
from rich.progress import track

from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.subprocesses import environment_below

SHAPE, LABELS = (12, 24, 24), ("square", "disc")
TRAINER = "FewStepsConditionalFiLMTrainer"
MODEL = f"Dataset801_Few/{TRAINER}__nnUNetPlans__tiny"
LAUNCHER = """
import json, resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as report:
    json.dump((status, used.ru_utime + used.ru_stime, used.ru_maxrss), report)
"""  # a process begins with the peak of the one that starts it, so that one has to be small
ALONE = ("-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0")


def write_cases(folder: Path, number: int, label: str, prefix: str) -> None:
    """Write a raw dataset that annotates one label, and complete label maps in `truth`."""
    for part in ("imagesTr", "labelsTr", "truth"):
        (folder / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for case in track(range(number), f"Writing {folder.name}"):
        truth = np.zeros(SHAPE, np.uint8)
        y, x = rng.integers(2, 10, 2)
        truth[3:9, y : y + 8, x : x + 8] = 1
        y, x = rng.integers(2, 18, 2)
        truth[4:8, y : y + 5, x : x + 5] = 2
        image = (truth * 40 + rng.normal(0, 10, SHAPE)).astype(np.int16)
        own = (truth == 1 + LABELS.index(label)).astype(np.uint8)
        for part, name, array in (("imagesTr", "_0000", image), ("labelsTr", "", own), ("truth", "", truth)):
            SimpleITK.WriteImage(
                SimpleITK.GetImageFromArray(array), str(folder / part / f"{prefix}{case}{name}.nii.gz")
            )
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, label: 1}}
    write_json(folder / "dataset.json", content | {"numTraining": number, "file_ending": ".nii.gz"})


class Measured:
    """Commands below a folder, and what they cost."""

    def __init__(self, folder: Path):
        self.folder, self.raw = folder, folder / "nnUNet_raw"
        more = {"nnUNet_extTrainer": str(ROOT / "tests/attack/trainers"), "nnUNet_compile": "f"}
        self.environment = environment_below(folder, os.environ | more) | {"nnUNet_n_proc_DA": "1"}

    def run(self, *words: object) -> dict[str, Any]:
        """Run one command; raises RuntimeError with its end where it fails."""
        log, report, began = self.folder / "log.txt", self.folder / "used.json", time.perf_counter()
        command = [sys.executable, "-I", "-S", "-c", LAUNCHER, report, Path(sys.executable).parent / str(words[0])]
        with log.open("w") as file:
            everything = list(map(str, [*command, *words[1:]]))
            subprocess.run(everything, env=self.environment, stdout=file, stderr=file, check=True)
        status, seconds, peak = json.loads(report.read_text())
        if status:
            raise RuntimeError(f"{words}: {log.read_text()[-2000:]}")
        wall = time.perf_counter() - began
        return {"wall_s": round(wall, 1), "cpu_s": round(seconds, 1), "peak_mib": round(peak / 1024)}

    def merged(self, number: int, identifier: int, name: str) -> str:
        """Write and merge two datasets of half as many cases each; return the name of the result."""
        parts = [f"Dataset{identifier + n}_{name}{label.title()}" for n, label in enumerate(LABELS, start=1)]
        for part, label in zip(parts, LABELS, strict=True):
            if not (self.raw / part).is_dir():
                write_cases(self.raw / part, number // 2, label, label[0])
        return f"Dataset{identifier}_{name}"

    def model(self) -> Path:
        """Train a tiny model for ten steps on a few cases; return its folder."""
        folder = self.folder / "nnUNet_results" / MODEL
        if not (folder / "fold_all" / "checkpoint_final.pth").is_file():
            name = self.merged(12, 801, "Few")
            self.run("conemos", "merge", 802, 803, "-o", name, "--overwrite")
            self.run("nnUNetv2_plan_and_preprocess", "-d", 801, "-npfp", 1, "-np", 1, "-c", "3d_fullres")
            file = self.folder / "nnUNet_preprocessed" / name / "nnUNetPlans.json"
            plans = json.loads(file.read_text())
            plans["configurations"]["tiny"] = small_configuration(plans, "3d_fullres", features=4, batch=2)
            write_json(file, plans)
            self.run("nnUNetv2_train", 801, "tiny", "all", "-tr", TRAINER, "-device", "cpu")
        return folder


def measure(measured: Measured, number: int, most: int) -> list[dict[str, Any]]:
    """Run the tools on a number of cases, the completion on `most` at most."""
    identifier, name = 810 + 10 * len(str(number)), f"Many{number}"
    merged = measured.merged(number, identifier, name)
    halves = identifier + 1, identifier + 2
    rows = [{"tool": "merge", "cases": number} | measured.run("conemos", "merge", *halves, "-o", merged, "--overwrite")]
    rows.append({"tool": "check", "cases": number} | measured.run("conemos", "check", merged))
    truth = measured.raw / f"Dataset{halves[0]}_{name}Square"
    words = ("conemos", "evaluate", truth / "truth", truth / "labelsTr", "--complete", "-o", measured.folder / "scores")
    settings = ("--overwrite", "-djfile", measured.raw / merged / "dataset.json")
    rows.append({"tool": "evaluate", "cases": number // 2} | measured.run(*words, *settings))
    if number <= most:
        words = (
            "conemos",
            "complete",
            "-m",
            measured.model(),
            "-d",
            merged,
            "-o",
            f"Dataset{identifier + 3}_Completed",
        )
        rows.append({"tool": "complete", "cases": number} | measured.run(*words, *ALONE, "--overwrite"))
    return rows


def main() -> int:
    """Measure each number of cases that the table lacks, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m many", description=__doc__)
    parser.add_argument("-o", dest="folder", type=Path, required=True, help="work and results; may be called again")
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 10_000], help="[%(default)s]")
    parser.add_argument("--complete", type=int, default=10_000, help="most cases that are completed [%(default)s]")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    table, measured = folder / "many.csv", Measured(folder)
    rows = pd.read_csv(table).to_dict("records") if table.is_file() else []
    measured.model()
    for number in args.cases:
        if not any(row["tool"] == "merge" and row["cases"] == number for row in rows):
            rows += measure(measured, number, args.complete)
            pd.DataFrame(rows).to_csv(table, index=False)
    print(pd.DataFrame(rows).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
