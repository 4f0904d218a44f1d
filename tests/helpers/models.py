"""A model folder as training leaves it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from phantoms import PHANTOM
from worlds import train

from nnunetv2_conemos.methods import ConditionalFiLMTrainer

HOW = ["-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0"]  # all in one process


MODEL = ["-d", "901", "-c", "tiny", "-tr", "ConditionalFiLMTrainer", "-f", "0"]


def make_model(
    base: Path,
    steps: int = 0,
    options: dict | None = None,
    trainer_class: type = ConditionalFiLMTrainer,
    dataset: str = PHANTOM,
) -> Path:
    """A model folder as training leaves it, after some steps."""
    folder = base / "nnUNet_preprocessed" / dataset
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    kwargs = architecture["arch_kwargs"]
    kwargs["features_per_stage"] = [8] * kwargs["n_stages"]
    tiny = {"inherits_from": "3d_fullres", "batch_size": 2, "architecture": architecture, "conemos": options or {}}
    plans["configurations"]["tiny"] = tiny
    dataset_json = json.loads((folder / "dataset.json").read_text())
    device = torch.device("cpu")
    torch.manual_seed(0)  # of the initial weights: whatever ran before, the same network
    trainer = trainer_class(plans | {"continue_training": False}, "tiny", 0, dataset_json, device)
    trainer.initialize()
    if steps:
        train(trainer, steps)
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    trainer.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    return model
