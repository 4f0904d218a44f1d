"""Weighted cross-entropy and Dice on annotated labels, and the difficulty of classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from nnunetv2_conemos.methods.generic_ssl.difficulty import ClassDifficulty, capped
from nnunetv2_conemos.methods.generic_ssl.loss import ClassWeightedDiceCE
from nnunetv2_conemos.methods.generic_ssl.network import against_background
from nnunetv2_conemos.records import Truth


def truth(target, known=None, valid=None):
    target = torch.as_tensor(target)
    every = torch.arange(1, 4).expand(len(target), -1)
    return Truth(target, every, torch.ones(len(target), 3, dtype=torch.bool) if known is None else known, valid)


def random_batch(samples=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 4, 6, 5, generator=generator)
    return logits, torch.randint(0, 4, (samples, 1, 6, 5), generator=generator)


def formula(logits, target, weight):
    """Written anew from the publication's text."""
    entropy = F.cross_entropy(logits, target[:, 0], weight)
    p, y = torch.softmax(logits, 1), F.one_hot(target[:, 0], 4).movedim(-1, 1).float()
    true, false, missed = ((a * b).sum((0, 2, 3)) for a, b in ((p, y), (p, 1 - y), (1 - p, y)))
    dice = (2 * true + 1) / (2 * true + false + missed + 1)
    return entropy, -(weight * dice)[1:].mean()


@pytest.mark.parametrize("weight", [(1, 1, 1, 1), (0.5, 2, 0.1, 1.3)])
def test_the_loss_is_cross_entropy_and_weighted_dice(weight):
    logits, target = random_batch()
    weight = torch.tensor(weight, dtype=torch.float32)
    entropy, dice = formula(logits, target, weight)
    found = ClassWeightedDiceCE()(against_background(logits), truth(target), weight)
    assert found.item() == pytest.approx((entropy + dice).item(), abs=1e-5)
    scaled = ClassWeightedDiceCE()(against_background(logits), truth(target), 3 * weight)
    assert scaled.item() == pytest.approx((entropy + 3 * dice).item(), abs=1e-5), "the scale acts on the Dice alone"
    if weight.unique().numel() == 1:
        assert ClassWeightedDiceCE()(against_background(logits), truth(target)).item() == pytest.approx(found.item())


def test_labels_that_are_not_annotated_are_background_and_have_no_dice():
    logits, target = random_batch(2)
    known = torch.tensor([[True, False, True], [True, False, False]])
    stray = truth(target, known)
    shown = torch.where((target == 2) | ((target == 3) & torch.tensor([False, True]).view(2, 1, 1, 1)), 0, target)
    loss = ClassWeightedDiceCE()
    value = loss(against_background(logits), truth(shown, known))
    assert value.item() == pytest.approx(loss(against_background(logits), stray).item(), abs=1e-6)
    merged = torch.softmax(logits, 1)
    two, three = merged[:, 2].clone(), merged[1, 3].clone()
    merged[:, 0] += two
    merged[1, 0] += three
    right = merged.gather(1, shown)[:, 0].log()
    p, y = merged[:, 1:], F.one_hot(shown[:, 0], 4).movedim(-1, 1)[:, 1:]
    dice = [
        (2 * (p[s, k] * y[s, k]).sum() + 1) / (p[s, k].sum() + y[s, k].sum() + 1) for k, s in ((0, [0, 1]), (2, [0]))
    ]
    assert value.item() == pytest.approx((-right.mean() - sum(dice) / 2).item(), abs=1e-5)
    swapped = loss(against_background(logits[:, [2, 1, 0, 3]]), truth(shown, known))
    assert swapped.item() == pytest.approx(value.item(), abs=1e-5), "background and what is unknown enter together"


def test_ignored_voxels_and_unlabelled_samples_do_not_count():
    logits, target = random_batch()
    valid, known = torch.rand(target.shape) < 0.5, torch.tensor([[True] * 3, [False] * 3, [True, True, False]])
    other = torch.where(valid, logits, torch.randn_like(logits))
    other[1] = torch.randn_like(other[1])
    plain, changed = (
        ClassWeightedDiceCE()(against_background(z), truth(target, known, valid)).item() for z in (logits, other)
    )
    assert plain == pytest.approx(changed, abs=1e-6)
    nothing = ClassWeightedDiceCE()(against_background(logits), truth(target, torch.zeros(3, 3, dtype=torch.bool)))
    assert nothing.item() == 0


def test_difficulty_by_hand_over_three_steps():
    made = ClassDifficulty(2)
    last, learnt, forgotten, lacking = 1e-8, 0.0, 0.0, 1.0
    for true, false, missed in ((0, 0, 10), (8, 2, 2), (4, 0, 6)):
        dice = (2 * true + 1e-8) / (2 * true + false + missed + 2e-8)
        change = dice - last
        amount = change * math.log(dice / last)
        learnt = 0.98 * learnt + 0.02 * (amount if change > 0 else 0)
        forgotten = 0.98 * forgotten + 0.02 * (0 if change > 0 else amount)
        lacking, last = 0.98 * lacking + 0.02 * (1 - dice), dice
        expected = 2 * ((forgotten + 1e-8) / (learnt + 1e-8)) ** 0.2 * lacking
        found = made.update(torch.tensor([[50.0, true], [0, false], [0, missed]]))
        assert found[1].item() == pytest.approx(expected, rel=1e-3)
    before = {name: state.clone() for name, state in made.named_buffers()}
    made.update(torch.tensor([[50.0, 0], [1, 0], [1, 0]]))
    for name, state in made.named_buffers():
        assert state[1] == before[name][1], "a class that is not there says nothing"
        assert state[0] != before[name][0]


def test_a_class_that_is_never_found_weighs_as_many_as_there_are_classes_and_one_just_learnt_little():
    made = ClassDifficulty(4)
    for _ in range(30):
        weights = made.update(torch.tensor([[90.0, 0, 80, 80], [0, 0, 5, 5], [0, 20, 5, 5]]))
    assert weights[1].item() == pytest.approx(1.03 * 4, rel=0.05)
    fresh = ClassDifficulty(4).update(torch.tensor([[90.0, 0, 80, 80], [0, 0, 5, 5], [0, 20, 5, 5]]))
    assert fresh[2].item() == pytest.approx(0.03 * 4, rel=0.3)


def test_capped_weights_differ_by_a_factor_of_three_at_most():
    assert capped(torch.tensor([0.2, 6.0, 1.0, 3.0])).tolist() == [2.0, 6.0, 2.0, 3.0]
    even = torch.tensor([1.0, 2.0, 2.5])
    assert torch.equal(capped(even), even)
