"""Time and memory against the number of labels: what is measured, and what is said where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from raw_worlds import read_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.benchmark.speed import case, compiled, loaders
from nnunetv2_conemos.benchmark.speed.arms import Arm
from nnunetv2_conemos.benchmark.speed.report import COLUMNS, with_ratios
from nnunetv2_conemos.benchmark.speed.run import measure_speed
from nnunetv2_conemos.benchmark.speed.settings import SpeedSettings
from nnunetv2_conemos.benchmark.speed.timing import guarded, take_turns
from nnunetv2_conemos.benchmark.speed.world import (
    dataset_of,
    default_plans,
    nnunet_environment,
    write_case,
    write_dataset,
)
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.errors import ExistingFileError, InputError


@pytest.fixture
def small_plans(preprocessed_phantom: Path) -> Path:
    """Plans of the phantom dataset with a configuration `small`; returns nnU-Net's folders."""
    file = preprocessed_phantom / "nnUNet_preprocessed/Dataset901_Phantom/nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["small"] = {
        **plans["configurations"]["3d_fullres"],
        **small_configuration(plans, "3d_fullres", features=4, patch=(16, 32, 32), batch=2),
    }
    file.write_text(json.dumps(plans))
    return preprocessed_phantom


def test_all_arms_are_measured_beside_stock(small_plans: Path, tmp_path: Path):
    arms = ("ConditionalFiLMTrainer", "MultiTalentTrainer", "MultiDecoderTrainer", "GenericSSLTrainer")
    settings = SpeedSettings(arms, (2, 40), ("step", "tile"), "cpu", "901", "small", rounds=1, profile=True)
    printed: list[str] = []
    result = measure_speed(tmp_path / "speed", settings, printed.append)

    table = result.table.set_index(["arm", "labels"])
    assert len(table) == 2 * (1 + len(arms))
    assert (table.loc["nnUNetTrainer", ["step_s_ratio", "tile_s_ratio"]] == 1).all(axis=None)
    assert table["note"]["MultiDecoderTrainer", 40].startswith("refused: ")
    assert "learns from cases that are not annotated" in table["note"]["GenericSSLTrainer", 2]
    film = table.loc["ConditionalFiLMTrainer"]
    assert film["step_mib"][40] < 1.1 * film["step_mib"][2], "training is flat in K"
    heads = table.loc["MultiTalentTrainer"]
    assert heads["step_mib"][40] > 1.1 * heads["step_mib"][2], "it keeps a map of every label"
    tiles = film["tile_s"] / heads["tile_s"]
    assert tiles[40] > 3 * tiles[2], "a pass per label"

    written = pd.read_csv(tmp_path / "speed" / "speed.csv")
    assert written["tile_s"].tolist() == pytest.approx(result.table["tile_s"].tolist(), nan_ok=True)
    assert json.loads((tmp_path / "speed" / "speed.json").read_text())["machine"]["torch"] == torch.__version__
    assert (tmp_path / "speed" / "speed.png").stat().st_size > 10_000
    assert "conv" in (tmp_path / "speed" / "profile_ConditionalFiLMTrainer_40.txt").read_text()
    assert any("K = 40" in line for line in printed)
    assert not (small_plans / "nnUNet_results" / "Dataset901_Phantom").exists(), "nothing of the user's is touched"
    with pytest.raises(ExistingFileError, match=r"speed\.csv exists"):
        measure_speed(tmp_path / "speed", settings, printed.append)


def test_loaders_are_measured_on_the_dataset(small_plans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loaders, "BATCHES", 2)
    settings = SpeedSettings(("ConditionalFiLMTrainer",), device="cpu", dataset="901", configuration="small", rounds=1)
    table = loaders.measure_loaders(settings, tmp_path / "speed", print)
    assert (table["batches_per_s"] > 0).all()
    assert table["loader_ratio"][0] == 1
    assert not (small_plans / "nnUNet_results" / "Dataset901_Phantom").exists(), "nothing of the user's is touched"


@pytest.mark.parametrize("name", ["nnUNetTrainer", "ConditionalFiLMTrainer"])
def test_a_whole_case_is_predicted_from_file_to_file_both_ways(small_plans: Path, tmp_path: Path, name: str):
    register_trainers()
    file = small_plans / "nnUNet_preprocessed/Dataset901_Phantom/nnUNetPlans.json"
    plans = json.loads(file.read_text())
    with nnunet_environment(tmp_path / "world", False):
        shared = plans | {"dataset_name": write_dataset(tmp_path / "world", plans, "small", dataset_of(2))}
        model = Arm(name, shared, "small", dataset_of(2), "cpu").save()
        write_case(tmp_path / "case", plans, "small", (16, 32, 32), 1)
        for way in get_args(case.Way):
            measured = case.predict_case(model, tmp_path / "case", tmp_path / way, "cpu", way=way)
            assert measured["s"] > 0
            assert measured["cpu_s"] > 0
            assert measured["mib"] > 100, "that of the whole process"
    ours, theirs = (read_nifti(tmp_path / way / "case.nii.gz") for way in get_args(case.Way))
    assert (ours == theirs).all()


@pytest.mark.slow
def test_the_memory_of_a_prediction_does_not_grow_with_the_number_of_labels(tmp_path: Path):
    settings = SpeedSettings(
        ("ConditionalFiLMTrainer",),
        (5, 40),
        ("case",),
        "cpu",
        case_shape=(96, 128, 128),
        step_size=1.0,
        features=2,
        patch=(64, 64, 64),
    )
    table = measure_speed(tmp_path, settings, lambda _: None).table.set_index(["arm", "labels"])
    mib = table.loc["ConditionalFiLMTrainer", ["case_mib", "nnunet_case_mib"]].astype(float)
    assert mib["case_mib"][40] < 1.1 * mib["case_mib"][5]
    assert mib["nnunet_case_mib"][40] > 1.3 * mib["nnunet_case_mib"][5]


@pytest.mark.slow
def test_default_plans_are_those_of_a_body_ct(tmp_path: Path):
    with nnunet_environment(tmp_path, False):
        planned = default_plans(tmp_path)["configurations"]["3d_fullres"]
    assert planned["patch_size"] == [128, 128, 128]
    assert planned["batch_size"] == 2
    assert planned["architecture"]["arch_kwargs"]["features_per_stage"] == [32, 64, 128, 256, 320, 320]


def test_a_call_that_fails_or_takes_too_long_is_noted():
    def no_memory() -> None:
        raise torch.OutOfMemoryError

    calls: list[str] = []
    work = {"large": no_memory, "slow": lambda: calls.append("slow"), "quick": lambda: calls.append("quick")}
    found = take_turns(work, "cpu", rounds=3, cap=100, report=lambda _: None)
    assert found["large"].seconds is None
    assert found["large"].note == "out of memory"
    assert calls == ["slow", "quick"] * 3, "all take turns"
    found = take_turns({"slow": work["slow"]}, "cpu", rounds=3, cap=0, report=lambda _: None)
    assert found["slow"].note.startswith("over the cap")
    assert calls.count("slow") == 4, "it is not repeated"


def test_a_call_that_torch_cannot_compute_is_noted():
    def backend_fails() -> None:
        raise RuntimeError("no kernel\nand a long trace")

    assert guarded(backend_fails, "cpu") == (None, "failed: no kernel")


def test_later_graphs_are_recompilations(monkeypatch: pytest.MonkeyPatch):
    counted = iter([(0, 0), (2, 1), (2, 1), (3, 1), (7, 1), (7, 1)])
    monkeypatch.setattr(compiled, "graphs_and_breaks", lambda: next(counted))
    counter = compiled.GraphCounter()
    for _ in range(3):
        with counter:
            pass
    assert (counter.graphs, counter.breaks, counter.recompilations) == (2, 1, 1), "graphs of other arms do not count"


def test_ratios_are_those_to_stock_with_as_many_labels():
    rows = [("nnUNetTrainer", 1, 2.0), ("X", 1, 3.0), ("nnUNetTrainer", 5, 4.0), ("X", 5, None)]
    frame = pd.DataFrame([{"arm": a, "labels": k, "tile_s": s} for a, k, s in rows], columns=pd.Index(COLUMNS))
    assert with_ratios(frame)["tile_s_ratio"].tolist() == pytest.approx([1, 1.5, 1, float("nan")], nan_ok=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels_counts": (0,)}, "labels_counts: expected numbers of 1 and more"),
        ({"what": ("nothing",)}, "what: expected step"),
        ({"rounds": 0}, "rounds and cap"),
        ({"step_size": 0}, "step_size and features"),
        ({"case_shape": (8, 8, 8)}, "case_shape: expected 3 numbers"),
    ],
)
def test_settings_that_measure_nothing_are_errors(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        SpeedSettings(**change)


def test_the_command_names_an_unknown_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["benchmark", "speed", "-o", str(tmp_path), "--arms", "NoTrainer"]) == 2
    assert "there is no trainer 'NoTrainer'" in capsys.readouterr().err
