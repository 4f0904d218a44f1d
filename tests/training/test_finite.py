"""A training stops at a loss that is not finite, names the cases of the step, and saves nothing more."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import LABELS
from every_trainer import TRAINERS
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tag_worlds import tagged_world
from worlds import make_trainer, two_stream_world, world

from nnunetv2_conemos import methods
from nnunetv2_conemos.errors import DivergedError


def started(base, trainer, **settings):
    """A trainer of one short epoch on a small world, ready to train."""
    np.random.seed(0)
    torch.manual_seed(0)
    if trainer is methods.CMERTrainer:
        tagged_world(base)
    else:
        world(base, LABELS, 2, "plain", unlabelled=trainer.learns_from_unlabelled)
    made = make_trainer(base, trainer, num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    made.initialize()
    return made


def spoil(batch: dict, value: float) -> str:
    """Put a value into the second image of a batch; return its case."""
    batch["data"][1, 0, ..., 3] = value
    return str(batch["keys"][1]).split("::")[0]


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda t: t.__name__)
def test_every_trainer_names_the_case_whose_image_is_not_finite(trainer, nnunet_folders):
    made = started(nnunet_folders, trainer)
    loader, validation = made.get_dataloaders()
    made.on_train_epoch_start()
    made.train_step(next(loader))
    batch = next(loader)
    case = spoil(batch[0] if isinstance(batch, tuple) else batch, np.nan)
    with pytest.raises(DivergedError) as error:
        made.train_step(batch)
    message = str(error.value)
    assert message.startswith(f"{trainer.__name__}, epoch 0, training step 1 of 2, both counted from 0: expected a")
    assert re.search(rf"NaN or infinite in '{case}' \(\d+ values of its patches\)", message)
    assert message in Path(made.log_file).read_text()

    made = started(nnunet_folders, trainer)
    batch = next(validation)
    case = spoil(batch, np.inf)
    made.on_validation_epoch_start()
    with torch.no_grad(), pytest.raises(DivergedError, match=f"validation step 0 of 1.*\n.*\n.*'{case}'"):
        made.validation_step(batch)


def test_an_unlabelled_image_is_named_with_the_terms_that_it_spoils(nnunet_folders):
    two_stream_world(nnunet_folders)
    made = make_trainer(nnunet_folders, methods.UniMOSTrainer)
    made.initialize()
    labelled, unlabelled = next(made.get_dataloaders()[0])
    case = spoil(unlabelled, np.nan)
    with pytest.raises(DivergedError, match=f"found loss nan, unsupervised loss nan.\nCases: .*\n.* in '{case}' "):
        made.train_step((labelled, unlabelled))


def test_nothing_is_saved_over_a_good_checkpoint(nnunet_folders, monkeypatch):
    made = started(nnunet_folders, methods.MultiTalentTrainer, save_every=1)
    latest = Path(made.output_folder) / "checkpoint_latest.pth"
    made.save_checkpoint(str(latest))
    good, step = latest.read_bytes(), nnUNetTrainer.train_step
    monkeypatch.setattr(nnUNetTrainer, "train_step", lambda *_: step(*_) | {"loss": np.array(np.inf)})
    with pytest.raises(DivergedError, match=r"found loss inf.\nCases: .*\nTheir images are finite, so the training"):
        made.run_training()
    assert [file.name for file in Path(made.output_folder).glob("*.pth")] == [latest.name]
    assert latest.read_bytes() == good
