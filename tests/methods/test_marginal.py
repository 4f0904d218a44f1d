"""The marginal loss sees what is annotated; with everything annotated it is nnU-Net's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from worlds import make_trainer, two_stream_world

from nnunetv2_conemos.methods import MarginalLossTrainer
from nnunetv2_conemos.methods.marginal import MarginalExclusionLoss
from nnunetv2_conemos.records import Truth

K = 3
EVERY = torch.arange(1, K + 1).expand(2, -1)


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, K, 6, 7, generator=generator, requires_grad=True)
    return logits, torch.randint(0, K + 1, (2, 1, 6, 7), generator=generator)


def truth(target: torch.Tensor, known: list[list[bool]], valid: torch.Tensor | None = None) -> Truth:
    return Truth(target, EVERY, torch.tensor(known), valid)


@pytest.mark.parametrize("exclusion", [0.0, 2.0])
def test_everything_annotated_is_the_stock_loss(exclusion):
    logits, target = sample()
    stock = DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )
    heads = torch.cat((torch.zeros_like(logits[:, :1]), logits), 1)
    ours = MarginalExclusionLoss(exclusion=exclusion)(logits, truth(target, [[True] * K] * 2))
    assert ours.item() == pytest.approx(stock(heads, target).item(), abs=1e-5)


def test_nothing_annotated_is_zero_with_zero_gradient():
    logits, target = sample()
    loss = MarginalExclusionLoss()(logits, truth(target, [[False] * K] * 2))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_labels_that_are_not_annotated_enter_through_their_log_sum_exp_alone():
    """Without exclusion: exchanging the logits of background and unknown labels at a voxel changes nothing."""
    logits, target = sample()
    target = target * (target == 1)
    known = truth(target, [[True, False, False]] * 2)
    loss = MarginalExclusionLoss(exclusion=0.0)
    exchanged = logits.detach().clone()
    exchanged[:, 1], exchanged[:, 2] = logits[:, 2].detach(), logits[:, 1].detach()
    assert loss(exchanged, known).item() == pytest.approx(loss(logits, known).item(), abs=1e-6)
    merged = torch.logsumexp(torch.stack((torch.zeros(2, 6, 7), *logits.detach()[:, 1:].unbind(1))), 0)
    alone = torch.cat((logits.detach()[:, :1] - merged[:, None], torch.full((2, 2, 6, 7), -1e4)), 1)
    assert loss(alone, known).item() == pytest.approx(loss(logits, known).item(), abs=1e-5)


def test_voxels_of_labels_that_are_not_annotated_count_as_background():
    logits, target = sample()
    hidden = torch.where(target == 1, target, 0)
    known = [[True, False, False]] * 2
    loss = MarginalExclusionLoss()
    assert loss(logits, truth(target, known)).item() == loss(logits, truth(hidden, known)).item()


def test_exclusion_pushes_other_labels_out_of_annotated_ones():
    logits, target = sample()
    known = truth(torch.where(target == 1, target, 0), [[True, False, False]] * 2)
    with_it, without = (MarginalExclusionLoss(exclusion=e)(logits, known) for e in (2.0, 0.0))
    assert with_it.item() > without.item()
    (gradient,) = torch.autograd.grad(with_it - without, logits)
    inside = (target == 1).expand(-1, 2, -1, -1)
    assert (gradient[:, 1:][inside] > 0).all(), "lowering these logits lowers the loss"


def test_ignored_voxels_change_nothing():
    logits, target = sample()
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., :3] = False
    loss = MarginalExclusionLoss()
    known = [[True, True, False], [False, True, True]]
    value = loss(logits, truth(target, known, valid))
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[..., :3] == 0).all()
    other = torch.where(valid, target, 1)
    assert loss(logits, truth(other, known, valid)).item() == value.item()


def test_a_sample_without_annotation_does_not_dilute_the_others():
    logits, target = sample()
    both = MarginalExclusionLoss()(logits, truth(target, [[True] * K, [False] * K]))
    one = MarginalExclusionLoss()(logits[:1], Truth(target[:1], EVERY[:1], torch.ones(1, K, dtype=torch.bool), None))
    assert both.item() == pytest.approx(one.item(), abs=1e-6)


def test_the_weight_of_the_exclusion_term_is_an_option(nnunet_folders: Path) -> None:
    for options, weight in (({}, 2.0), ({"exclusion": 0.0}, 0.0)):
        two_stream_world(nnunet_folders, unlabelled=0, **options)
        trainer = make_trainer(nnunet_folders, MarginalLossTrainer)
        trainer.initialize()
        assert trainer.loss.loss.exclusion == weight
