"""What a training costs, measured with a trainer of four steps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from phantoms import PHANTOM

from nnunetv2_conemos.benchmark import measure as measure_module
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.doorway import VARIABLE, doorway_folder
from nnunetv2_conemos.inference.model_folder import read_checkpoint, read_model

FEW_STEPS = """
from nnunetv2_conemos.methods import ConditionalFiLMTrainer

class FewStepsTrainer(ConditionalFiLMTrainer):
    settings = {"num_epochs": 2, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}
"""


@pytest.fixture
def arguments(preprocessed_phantom: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    folder = preprocessed_phantom / "more_trainers"
    folder.mkdir()
    (folder / "few_steps.py").write_text(FEW_STEPS)
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(doorway_folder()), str(folder)]))
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    file = preprocessed_phantom / f"nnUNet_preprocessed/{PHANTOM}/nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["small"] = small_configuration(plans, "2d", features=4, batch=2)
    file.write_text(json.dumps(plans))
    return ["train", PHANTOM, "small", "0", "FewStepsTrainer", "nnUNetPlans", "cpu"]


def measure(report: Path, arguments: list[str]) -> dict[str, float]:
    """In this process; test_chain starts one as a benchmark does."""
    measure_module.main(str(report), "3", *arguments)
    return json.loads(report.read_text())


def test_a_training_is_measured_and_ends_before_the_final_validation(arguments: list[str], preprocessed_phantom: Path):
    report = preprocessed_phantom / "costs.json"
    costs = measure(report, arguments)
    fold = preprocessed_phantom / f"nnUNet_results/{PHANTOM}/FewStepsTrainer__nnUNetPlans__small/fold_0"
    network = read_model(fold.parent).network(read_checkpoint(fold / "checkpoint_final.pth"))
    assert costs["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert 0.001 < costs["step_s"] < 60
    assert 100 < costs["train_peak_mib"] < 100_000
    assert not (fold / "validation").exists()

    report.unlink()  # as after a kill between the last checkpoint and the report
    (fold / "checkpoint_latest.pth").write_bytes(b"PK cut short by a kill")
    again = measure(report, arguments)
    assert not (fold / "checkpoint_latest.pth").exists()
    assert "train_peak_mib" not in again, "nothing was trained this time"
    assert (again["step_s"], again["parameters"]) == (costs["step_s"], costs["parameters"])
