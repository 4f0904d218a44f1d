"""The target adaptive loss: by hand, in its gradients, and what it does not see."""

import math

import pytest
import torch
from architectures import build, plans
from torch import nn
from worlds import make_trainer, two_stream_world

from nnunetv2_conemos.losses.marginalised import marginalised_log_probabilities
from nnunetv2_conemos.methods import UniMOSTrainer
from nnunetv2_conemos.methods.unimos.loss import LOG_PRIOR, TargetAdaptiveLoss, weighted_nll
from nnunetv2_conemos.records import Truth

EVERY = torch.arange(1, 4)


def truth(target, known, valid=None):
    target = torch.as_tensor(target)
    return Truth(target, EVERY.expand(len(target), -1), torch.as_tensor(known), valid)


def heads(logits):
    """Against background, whose logit is the first."""
    return logits[:, 1:] - logits[:, :1]


@pytest.mark.parametrize(
    ("known", "target", "expected"),
    [
        ((1, 0, 0), 0, lambda p: -0.2 * math.log(p[0] + p[2] + p[3])),
        ((1, 0, 0), 1, lambda p: -1.2 * math.log(p[1])),
        ((1, 0, 1), 0, lambda p: -0.2 * math.log(p[0] + p[2])),
        ((1, 0, 1), 3, lambda p: -1.2 * math.log(p[3])),
        ((1, 1, 1), 2, lambda p: -1.2 * math.log(p[2])),
        ((1, 0, 0), 3, lambda p: -0.2 * math.log(p[0] + p[2] + p[3])),  # a stray voxel of what is not annotated
    ],
)
def test_one_voxel_by_hand(known, target, expected):
    logits = torch.tensor([0.3, -0.7, 1.1, 0.2]).view(1, 4, 1, 1)
    p = torch.softmax(logits.flatten(), 0).tolist()
    one = truth([[[[target]]]], [[bool(k) for k in known]])
    weight = 1.2 if known[target - 1] and target else 0.2
    assert TargetAdaptiveLoss()(heads(logits), one).item() == pytest.approx(expected(p) / weight, rel=1e-5)


def random_batch(seed=0, samples=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 4, 6, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 4, (samples, 1, 6, 5), generator=generator)


def test_everything_annotated_is_weighted_cross_entropy_and_nothing_annotated_is_zero():
    logits, target = random_batch()
    weight = torch.tensor([0.2, 1.2, 1.2, 1.2], dtype=torch.float64)
    expected = nn.functional.cross_entropy(logits, target[:, 0], weight)
    assert TargetAdaptiveLoss()(heads(logits), truth(target, [[True] * 3] * 3)).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    leaf = heads(logits).requires_grad_()
    nothing = TargetAdaptiveLoss()(leaf, truth(target, [[False] * 3] * 3))
    nothing.backward()
    assert nothing.item() == 0
    assert leaf.grad.abs().max() == 0


def test_unknown_labels_enter_through_their_log_sum_exp_alone():
    logits, target = random_batch()
    known = truth(target * (target == 1), [[True, False, False]] * 3)
    value = TargetAdaptiveLoss()(heads(logits), known).item()
    for permutation in ([0, 1, 3, 2], [2, 1, 0, 3], [3, 1, 2, 0]):
        assert TargetAdaptiveLoss()(heads(logits[:, permutation]), known).item() == pytest.approx(value, abs=1e-6)
    assert TargetAdaptiveLoss()(heads(logits[:, [1, 0, 2, 3]]), known).item() != pytest.approx(value, abs=1e-3)


def test_gradients_are_those_of_the_two_formulas():
    logits = torch.tensor([[0.3, -0.7, 1.1, 0.2]]).view(1, 4, 1, 1)
    p = torch.softmax(logits.flatten(), 0)
    for target in (0, 1):
        leaf = logits.clone().requires_grad_()
        TargetAdaptiveLoss()(heads(leaf), truth([[[[target]]]], [[True, False, False]])).backward()
        merged = torch.tensor([1.0, 0.0, 1.0, 1.0])  # background and what is not annotated
        own = torch.tensor([0.0, 1.0, 0.0, 0.0])
        expected = p - (own if target else merged * p / (p * merged).sum())
        assert torch.allclose(leaf.grad.flatten(), expected, atol=1e-6)
        assert leaf.grad.flatten()[2] != 0, "labels that are not annotated do get a gradient"


def test_samples_are_combined_by_the_weights_of_their_voxels():
    logits, target = random_batch()
    known = [[True, False, False], [True, True, True], [False, True, False]]
    together = TargetAdaptiveLoss()(heads(logits), truth(target, known)).item()
    parts = []
    for i in range(3):
        one = truth(target[i : i + 1], known[i : i + 1])
        shown = one.onehot() & one.known[..., None, None]
        weight = torch.where(shown.any(1), 1.2, 0.2).sum().item()
        parts.append((TargetAdaptiveLoss()(heads(logits[i : i + 1]), one).item(), weight))
    expected = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
    assert together == pytest.approx(expected, rel=1e-5)


def test_ignored_voxels_and_unlabelled_samples_do_not_count():
    logits, target = random_batch()
    valid = torch.rand(target.shape) < 0.5
    known = [[True, True, False], [False] * 3, [True] * 3]
    noise = torch.where(valid, logits, torch.randn_like(logits))
    noise[1] = torch.randn_like(noise[1])
    plain, other = (TargetAdaptiveLoss()(heads(z), truth(target, known, valid)).item() for z in (logits, noise))
    assert plain == pytest.approx(other, abs=1e-6)


def dice_part(logits, known):
    return (TargetAdaptiveLoss(dice_weight=1.0)(logits, known) - TargetAdaptiveLoss()(logits, known)).item()


def test_the_dice_is_of_annotated_labels_pooled_over_samples():
    """Label 1 is annotated in two samples; label 2 in one, where it is absent; label 3 in the other."""
    logits, target = random_batch(samples=2)
    target[1][target[1] == 2] = 0
    known = truth(target, [[True, False, True], [True, True, False]])
    p = torch.softmax(logits, 1)
    overlap, mass = ((p[:, 1] * (target[:, 0] == 1)).sum(), p[:, 1].sum() + (target == 1).sum())
    first = (2 * overlap / mass).item()
    third = (2 * (p[0, 3] * (target[0, 0] == 3)).sum() / (p[0, 3].sum() + (target[0] == 3).sum())).item()
    assert dice_part(heads(logits), known) == pytest.approx(-(first + third) / 2, abs=1e-5)
    weighted = TargetAdaptiveLoss(dice_weight=0.3)(heads(logits), known) - TargetAdaptiveLoss()(heads(logits), known)
    assert weighted.item() == pytest.approx(-0.3 * (first + third) / 2, abs=1e-5)
    nothing = truth(target, [[False] * 3] * 2)
    assert TargetAdaptiveLoss(dice_weight=1.0)(heads(logits), nothing).item() == 0


def test_the_dice_does_not_see_ignored_voxels_nor_what_is_not_annotated():
    logits, target = random_batch()
    valid = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    known = [[True, True, False], [False] * 3, [True, False, False]]
    other_logits, other_target = torch.where(valid, logits, 5.0), torch.where(valid, target, 1)
    other_logits[1], other_target[1] = -other_logits[1], 2
    stray = torch.where((target == 3) | ((target == 2) & (torch.arange(3) == 2).view(3, 1, 1, 1)), 0, other_target)
    other_logits[:, [0, 3]] = other_logits[:, [3, 0]]  # background and a label that nobody annotates
    plain = dice_part(heads(logits), truth(target, known, valid))
    assert dice_part(heads(other_logits), truth(stray, known, valid)) == pytest.approx(plain, abs=1e-6)
    assert dice_part(heads(logits), truth(target, known)) != pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "dice_weight", "prior"),
    [
        ({}, 1.0, math.log(6)),
        ({"dice_weight": 0.5}, 0.5, math.log(6)),
        ({"published": True}, 0.0, 0.0),
        ({"published": True, "dice_weight": 0.5}, 0.5, 0.0),
    ],
)
def test_dice_weight_and_prior_are_those_of_the_plans(nnunet_folders, options, dice_weight, prior):
    two_stream_world(nnunet_folders, **options)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    assert trainer.loss.dice_weight == dice_weight
    assert trainer.loss.prior == trainer.network.prior == pytest.approx(prior)


def test_a_negative_dice_weight_is_refused():
    with pytest.raises(ValueError, match="dice_weight: Input should be greater than or equal to 0"):
        build(UniMOSTrainer, plans(2, dice_weight=-1.0))


def slope(loss, logit, labelled):
    """The gradient of the loss in the one logit of 100 voxels, of which some show the label."""
    target = torch.zeros(1, 1, 100, 1, dtype=torch.long)
    target[:, :, :labelled] = 1
    one = Truth(target, torch.tensor([[1]]), torch.tensor([[True]]), None)
    leaf = torch.tensor(float(logit), requires_grad=True)
    loss(leaf.expand(1, 1, 100, 1), one).backward()
    return leaf.grad.item()


@pytest.mark.parametrize("labelled", [2, 30, 71])
def test_with_prior_correction_the_likeliest_share_is_the_true_one(labelled):
    """Where nothing tells voxels apart, what the loss likes best is as much of a label as there is."""
    odds = math.log(labelled / (100 - labelled))
    assert slope(TargetAdaptiveLoss(prior=LOG_PRIOR), odds, labelled) == pytest.approx(0, abs=1e-6)
    assert slope(TargetAdaptiveLoss(), odds, labelled) < -0.01, "as published: more"
    assert slope(TargetAdaptiveLoss(), odds + math.log(6), labelled) == pytest.approx(0, abs=1e-6)


def test_the_prior_acts_on_the_cross_entropy_alone():
    logits, target = random_batch()
    known = truth(target, [[True, True, False]] * 3)
    tilted = TargetAdaptiveLoss()(heads(logits) + LOG_PRIOR, known).item()
    assert TargetAdaptiveLoss(prior=LOG_PRIOR)(heads(logits), known).item() == pytest.approx(tilted, abs=1e-6)
    both = TargetAdaptiveLoss(dice_weight=1.0, prior=LOG_PRIOR)(heads(logits), known).item()
    assert both - tilted == pytest.approx(dice_part(heads(logits), known), abs=1e-5)


def test_the_weighted_nll_is_clamped():
    logits = torch.tensor([60.0, -60.0, 0.0]).view(1, 3, 1, 1)
    log_p = marginalised_log_probabilities(logits, torch.ones(1, 3, dtype=torch.bool))
    nll, weight = weighted_nll(log_p, torch.tensor([[[2]]]))
    assert nll.item() == pytest.approx(1.2 * 10 * math.log(10), rel=1e-5)
    assert weight.item() == pytest.approx(1.2)
