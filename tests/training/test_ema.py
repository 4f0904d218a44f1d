"""Averaged weights are what is validated and saved, and training goes on with its own."""

from pathlib import Path

import pytest
import torch
from hermes_models import toy_world
from torch import nn
from worlds import make_trainer

from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.training.ema import TRAINING, MovingAverage


def test_the_moving_average_in_closed_form():
    model = nn.Linear(1, 1, bias=False)
    average, values = MovingAverage(model, 0.6), [1.0, 3.0, 7.0, 2.0]
    for value in values:
        model.weight.data.fill_(value)
        average.update()
    expected = values[0]
    for n, value in enumerate(values[1:], start=1):
        decay = min(1 - 1 / (n + 1), 0.6)
        expected = decay * expected + (1 - decay) * value
    assert average.model.module.weight.item() == pytest.approx(expected)
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == values[-1]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_checkpoint_holds_the_average_and_training_goes_on_bit_by_bit(nnunet_folders):
    toy_world(nnunet_folders, modality_dropout=0.0)
    torch.manual_seed(0)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    batches = [next(loader) for _ in range(6)]
    trainer.network.train()
    for batch in batches[:3]:
        trainer.train_step(batch)
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(file)
    saved = torch.load(file, weights_only=False)
    average = trainer.average.model.module.state_dict()
    assert all(torch.equal(value, average[key]) for key, value in saved["network_weights"].items())
    assert any(not torch.equal(value, average[key]) for key, value in saved[TRAINING]["weights"].items())

    resumed = make_trainer(nnunet_folders, HermesTrainer)
    resumed.initialize()
    resumed.load_checkpoint(file)
    resumed.network.train()
    for batch in batches[3:]:
        trainer.train_step(batch)
        resumed.train_step(batch)
    assert same(trainer.network, resumed.network)
    assert same(trainer.average.model, resumed.average.model)
    assert not same(trainer.network, trainer.average.model.module)


def test_an_interrupted_checkpoint_leaves_the_one_before(nnunet_folders, monkeypatch):
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    file = Path(f"{trainer.output_folder}/checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MovingAverage, "add_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before
