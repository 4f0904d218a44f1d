"""Cost against the number of labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunetv2_conemos.benchmark import scaling
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.doorway import VARIABLE, doorway_folder


def test_methods_cost_what_their_design_says(preprocessed_phantom: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(doorway_folder()))
    monkeypatch.setattr(scaling, "NUMBERS", (2, 40))
    monkeypatch.setattr(scaling, "SECONDS", 0)
    file = preprocessed_phantom / "nnUNet_preprocessed/Dataset901_Phantom/nnUNetPlans.json"
    trainers = [
        "nnUNetTrainer",
        "ConditionalFiLMTrainer",
        "LabelSetFiLMTrainer",
        "MultiDecoderTrainer",
        "GenericSSLTrainer",
    ]
    plans = json.loads(file.read_text())
    plans["configurations"]["small"] = small_configuration(plans, "2d", features=8, batch=2)
    costs = scaling.costs_against_k(plans, "small", 1, "cpu", trainers)
    table = costs.set_index(["trainer", "labels"])
    assert len(table) == 2 * len(trainers)
    assert table.loc[("MultiDecoderTrainer", 40)].isna().all(), "it refuses so many labels"
    table = table.drop(index=("MultiDecoderTrainer", 40))
    assert (table["step_s"].isna() == [name == "GenericSSLTrainer" for name, _ in table.index]).all()
    growth = table["predict_s"].unstack().pipe(lambda t: t[40] / t[2])
    assert growth["ConditionalFiLMTrainer"] > 6, "a pass per label"
    assert growth["LabelSetFiLMTrainer"] < 3, "one pass for all"
