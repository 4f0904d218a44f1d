"""A small benchmark by the real command on real volumes: stopped in the middle, started again, every kind of arm."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from programs import command, environment
from real import DATA, real_data

pytestmark = [*real_data, pytest.mark.slow]
ARMS = ["vanilla", "LabelSetFiLMTrainer", "HermesTrainer", "per-label", "completed:LabelSetFiLMTrainer", "ceiling"]
RECIPE = {
    "hide": {"per_case": 1},
    "hold_out": 5,
    "seeds": [0],
    "epochs": [1],
    "optimiser": "AdamW",  # with SGD, stock nnU-Net finds nothing in so few steps
    "arms": ARMS,
    "configuration": "tiny",
    "configurations": {"tiny": {"features": 4, "patch_size": [24, 32, 24], "batch_size": 2}},
}


def test_a_benchmark_stopped_and_started_again(nnunet_folders: Path):
    raw = nnunet_folders / "Hippocampus"
    for part in ("imagesTr", "labelsTr"):
        (raw / part).mkdir(parents=True)
        for file in sorted((DATA / "Hippocampus" / part).iterdir())[:25]:
            shutil.copy(file, raw / part)
    shutil.copy(DATA / "Hippocampus/dataset.json", raw)
    file, folder = nnunet_folders / "recipe.yaml", nnunet_folders / "bench"
    file.write_text(yaml.safe_dump({"dataset": str(raw), **RECIPE}))
    words = ["conemos", "benchmark", str(file), "-o", str(folder), "-device", "cpu", "-np", "2"]

    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, env=environment(), start_new_session=True, **quiet)
    try:
        deadline = time.monotonic() + 900
        while not (folder / "runs.csv").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
    first = pd.read_csv(folder / "runs.csv")
    assert list(first["arm"]) == ["vanilla"]

    command(*words)
    runs = pd.read_csv(folder / "runs.csv").set_index("arm")
    assert list(runs.index) == ARMS
    assert set(runs["status"]) == {"done"}
    assert runs["date"]["vanilla"] == first["date"][0], "not done again"
    assert list(runs["steps"]) == [250, 250, 250, 500, 500, 250]
    assert runs["plans_hash"].nunique() == 1
    assert (runs["dice"] > 0).all(), "250 steps of tiny networks rank nothing, but each learns something"
    cases = pd.read_csv(folder / "cases.csv")
    assert len(cases) == 5 * 2 * len(ARMS)
    trained = json.loads((folder / "nnUNet_preprocessed/Dataset900_Partial/splits_final.json").read_text())
    assert not set(cases["case"]) & {case for fold in trained for part in fold.values() for case in part}
    assert (folder / "report.html").is_file()
    assert (folder / "figures" / "priors.png").is_file()
