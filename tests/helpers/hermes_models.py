"""Networks of HermesTrainer, a toy world of two modalities, and a model folder on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from architectures import LABELS, build, patch, plans
from worlds import NAME, make_trainer, shapes, write_world

from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.records import Query


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


def network(dim=2, modalities=("CT", "T1", "T2"), groups=None, labels=LABELS, kind="plain", **options):
    """An untrained network in its evaluation mode, weights perturbed as if trained."""
    manager = plans(dim, kind, labels, **options)
    manager.plans[PLANS_KEY] |= {"modalities": list(modalities)} | ({"groups": groups} if groups else {})
    torch.manual_seed(0)
    made = build(HermesTrainer, manager, labels).eval()
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def query(labels, modality=(1, 2), dim=2, seed=1):
    """Random images of two modalities in which these labels are queried."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(len(labels), 1, *patch(dim), generator=generator)
    return Query(image, torch.tensor(labels), torch.tensor(modality))
