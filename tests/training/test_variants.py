"""Trainers of other lengths, without mirroring, and with AdamW: ours and the stock ones beside them."""

from __future__ import annotations

import pickle
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from worlds import make_trainer, shapes, write_world

from nnunetv2_conemos import doorway as env
from nnunetv2_conemos.training.variants import variant

LABELS = {"background": 0, "square": 1, "disc": 2}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(env.VARIABLE, str(env.doorway_folder()))
    return recursive_find_trainer_class_by_name


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "ConditionalFiLMTrainer", "MarginalLossTrainer"])
def test_nnunet_finds_every_variant_and_can_pickle_it(trainer: str, found):
    for epochs, mirroring, adam in product((1, 40), (True, False), (True, False)):
        name = variant(trainer, epochs, mirroring, adam)
        variant_class = found(name)
        assert variant_class.__name__ == name
        assert pickle.loads(pickle.dumps(variant_class)) is variant_class


@pytest.mark.parametrize(("mirroring", "adam"), product((True, False), (True, False)))
@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "ConditionalFiLMTrainer"])
def test_ours_and_the_stock_one_train_alike(nnunet_folders: Path, found, trainer: str, mirroring: bool, adam: bool):
    rng = np.random.default_rng(0)
    write_world(nnunet_folders, {f"case{i}": shapes(rng) for i in range(5)}, LABELS, None)
    made = make_trainer(nnunet_folders, found(variant(trainer, 10, mirroring, adam)))
    made.network = torch.nn.Conv2d(1, 1, 1)
    optimiser, _ = made.configure_optimizers()
    assert made.num_epochs == 10
    assert type(optimiser) is (torch.optim.AdamW if adam else torch.optim.SGD)
    assert made.initial_lr == optimiser.param_groups[0]["lr"] == (1e-3 if adam else 1e-2)
    assert (made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] is not None) == mirroring
