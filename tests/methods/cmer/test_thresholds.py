"""Thresholds are chosen on validation masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tag_worlds import log_of, tagged_world, trained

from nnunetv2_conemos.methods.cmer.thresholds import best_threshold, dice_by_threshold


def test_the_best_threshold_is_that_of_the_best_mean_dice():
    activation = np.linspace(0, 1, 101)
    everything = np.ones(101, dtype=bool)
    low, high = (dice_by_threshold(activation, activation > t, everything) for t in (0.299, 0.601))
    assert best_threshold(np.stack([low]))[0] == pytest.approx(0.3)
    assert best_threshold(np.stack([high]))[0] == pytest.approx(0.6)
    absent = dice_by_threshold(activation, activation > 2, everything)
    assert np.isnan(absent).all()
    assert best_threshold(np.stack([absent, high]))[0] == pytest.approx(0.6)
    assert best_threshold(np.stack([absent])) is None
    assert dice_by_threshold(activation, activation > 0.5, activation > 0.45)[0] == pytest.approx(100 / 105, abs=0.01)


def test_thresholds_are_chosen_on_validation_masks_only_and_saved_in_both_checkpoints(nnunet_folders, monkeypatch):
    tagged_world(nnunet_folders)
    made = trained(nnunet_folders, 1)
    validation = made.do_split()[1]
    assert validation
    assert all(case.startswith("m") for case in validation)
    queried = []
    levels = iter((0.3, 0.7))

    def fused(network, image, patch, at_once, device):
        queried.append(image.shape)
        level = levels_now[0]
        return np.where(truth_of(queried), level + 0.02, level - 0.02)[None]

    truths = [made.dataset_class(made.preprocessed_dataset_folder, [c]).load_case(c)[1][0] == 1 for c in validation]

    def truth_of(calls):
        return truths[(len(calls) - 1) % len(truths)]

    levels_now: list = [next(levels)]
    monkeypatch.setattr("nnunetv2_conemos.methods.cmer.trainer.fused_volume", fused)
    made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_best.pth"))
    tune, calls = made.tune_thresholds, []

    def watched():
        tune()
        calls.append(made.cam.threshold.item())
        levels_now[0] = next(levels, None)

    made.tune_thresholds = watched
    made.on_train_end()
    assert calls == pytest.approx([0.3, 0.7])
    saved = {}
    for name in ("final", "best"):
        file = Path(made.output_folder) / f"checkpoint_{name}.pth"
        saved[name] = torch.load(file, weights_only=False)["network_weights"]["threshold"].item()
    assert saved == pytest.approx({"final": 0.3, "best": 0.7})
    assert "Threshold of 'lesion': 0.30 (Dice 1.000" in log_of(made)


def test_without_validation_masks_the_threshold_stays_and_there_is_no_final_dice(nnunet_folders):
    tagged_world(nnunet_folders, masks=0)
    made = trained(nnunet_folders, 1)
    assert made.do_split()[1], "tagged cases validate the classification"
    made.tune_thresholds()
    made.perform_actual_validation()
    assert made.cam.threshold.tolist() == [0.5]
    assert "Threshold of 'lesion': 0.50 (no label map to choose on)" in log_of(made)
    assert "No validation case has a label map: there is no final Dice." in log_of(made)
    assert not (Path(made.output_folder) / "validation").exists()
