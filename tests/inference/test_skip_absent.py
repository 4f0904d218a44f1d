"""`--skip-absent` of the commands, the field of `Inference` and the variable make the same choice."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import HOW, MODEL, make_model
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from phantoms import PHANTOM
from raw_worlds import read_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.inference.predictor import Inference, predict
from nnunetv2_conemos.methods import MultiTalentTrainer
from nnunetv2_conemos.networks.early_leaving import BOUNDS, NO_BOUNDS

SPLEEN = 2
IN_PROCESS = Inference(["0"], device="cpu", mirroring=False, preprocessing=0, export=0, skip_absent=True)


def maps(folder: Path) -> list[np.ndarray]:
    return [read_nifti(file) for file in sorted(folder.glob("*.nii.gz"))]


def with_bounds(model: Path, *labels: int) -> None:
    """Give a model bounds that these labels never reach, and that the others always do."""
    file = model / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    heads = {key.split(".")[2] for key in checkpoint["network_weights"] if key.startswith("decoder.seg_layers.")}
    bounds = torch.full((len(heads) - 1, 4), -1e6)
    bounds[:, [label - 1 for label in labels]] = 1e6
    checkpoint["network_weights"][BOUNDS] = bounds
    torch.save(checkpoint, file)


@pytest.mark.slow
def test_command_function_and_variable_skip_the_same(model, images, tmp_path, monkeypatch):
    with_bounds(model, SPLEEN)
    words = ["predict", "-i", str(images), *MODEL, *HOW]
    assert cli.main([*words, "-o", str(tmp_path / "exact")]) == 0
    assert cli.main([*words, "-o", str(tmp_path / "command"), "--skip-absent"]) == 0
    assert "CONEMOS_SKIP_ABSENT" not in os.environ
    predict(model, images, tmp_path / "function", inference=IN_PROCESS)
    assert "CONEMOS_SKIP_ABSENT" not in os.environ
    monkeypatch.setenv("CONEMOS_SKIP_ABSENT", "1")
    monkeypatch.setattr(sys, "argv", ["", "-i", str(images), "-o", str(tmp_path / "variable"), *MODEL, *HOW])
    predict_entry_point()
    exact, command, function, variable = (
        maps(tmp_path / name) for name in ("exact", "command", "function", "variable")
    )
    assert len(exact) == 2
    assert any((label_map == SPLEEN).any() for label_map in exact)
    for every, *skipped in zip(exact, command, function, variable, strict=True):
        assert not any((label_map == SPLEEN).any() for label_map in skipped)
        assert all((label_map == skipped[0]).all() for label_map in skipped)
        assert (skipped[0] == every)[every != SPLEEN].all(), "whatever stays is the same"


def test_a_model_without_bounds_says_so_and_predicts_the_same(model, images, tmp_path):
    exact = predict(model, images, tmp_path / "exact", inference=replace(IN_PROCESS, skip_absent=False))
    with pytest.warns(UserWarning, match=NO_BOUNDS):
        skipped = predict(model, images, tmp_path / "skipped", inference=IN_PROCESS)
    for before, after in zip(exact, skipped, strict=True):
        assert (read_nifti(before) == read_nifti(after)).all()


def test_completion_leaves_out_what_is_absent(model, preprocessed_phantom):
    with_bounds(model, 1, 2, 3, 4)
    words = ["complete", "-m", str(model), "-d", "901", "-o", "Dataset911_Complete", *HOW, "--skip-absent"]
    assert cli.main(words) == 0
    raw = preprocessed_phantom / "nnUNet_raw"
    for file in (raw / "Dataset911_Complete" / "labelsTr").glob("*.nii.gz"):
        assert (read_nifti(file) == read_nifti(raw / PHANTOM / "labelsTr" / file.name)).all()


def test_trainers_with_one_pass_refuse_in_a_sentence(preprocessed_phantom, images, tmp_path, capsys):
    make_model(preprocessed_phantom, trainer_class=MultiTalentTrainer)
    words = ["predict", "-i", str(images), "-o", str(tmp_path / "out"), *MODEL, *HOW, "--skip-absent"]
    words[words.index("ConditionalFiLMTrainer")] = "MultiTalentTrainer"
    assert cli.main(words) == 2
    assert "predicts all its labels in one pass, so there are none to skip" in capsys.readouterr().err.replace(
        "\n", " "
    )
