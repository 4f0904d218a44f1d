"""A toy world of two modalities, and a model folder of HermesTrainer on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from architectures import LABELS
from worlds import NAME, make_trainer, shapes, write_world

from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.training.plans_facts import PLANS_KEY


def toy_world(base, modality=True, unlabelled=False, **options):
    rng = np.random.default_rng(0)
    cases = {f"{'ab'[i % 2]}{i}": shapes(rng, 16) for i in range(10)}
    if unlabelled:
        cases["u0"] = shapes(rng, 16)[0], np.zeros((1, 16, 16), dtype=np.int8)
    sources = {
        "A": {"cases": ["a*"], "annotated": ["a"]} | ({"modality": "CT"} if modality else {}),
        "B": {"cases": ["b*"], "annotated": ["a", "b"]} | ({"modality": "T1"} if modality is True else {}),
    }
    if unlabelled:
        sources["U"] = {"cases": ["u*"], "annotated": []}
    plans = write_world(base, cases, LABELS, sources, batch_size=2)
    plans["configurations"]["tiny"][PLANS_KEY] = options
    (base / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json").write_text(json.dumps(plans))


def save_model(base):
    """A trainer after a step, saved as nnU-Net leaves a model folder; returns trainer and folder."""
    trainer = make_trainer(base, HermesTrainer)
    trainer.initialize()
    trainer.on_train_start()
    trainer.network.train()
    trainer.train_step(next(trainer.get_dataloaders()[0]))
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    return trainer, Path(trainer.output_folder).parent
