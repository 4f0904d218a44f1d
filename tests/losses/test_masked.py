"""The loss counts what is annotated and nothing else; the empty-target trap stays shut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunetv2_conemos.losses.dice import pair_dice
from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.losses.pair_sums import pair_sums
from nnunetv2_conemos.methods.generic_ssl.loss import ClassWeightedDiceCE
from nnunetv2_conemos.methods.hermes.loss import AdaptiveTverskyBCE, HermesOutput
from nnunetv2_conemos.methods.marginal import MarginalExclusionLoss
from nnunetv2_conemos.methods.unimos.loss import TargetAdaptiveLoss
from nnunetv2_conemos.records import QueriedLabels, Truth, to_truth
from nnunetv2_conemos.training.validation import hard_counts

SHAPE = (6, 5)


def random_batch(seed, batch=3, queried=2, num_labels=4):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, num_labels + 1, (batch, 1, *SHAPE), generator=generator)
    labels = torch.randint(1, num_labels + 1, (batch, queried), generator=generator)
    logits = torch.randn(batch, queried, *SHAPE, generator=generator, requires_grad=True)
    return logits, target, labels


def loss_and_gradient(logits, truth):
    logits = logits.detach().requires_grad_()
    loss = MaskedDiceBCE()(logits, truth)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.item(), gradient


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_voxels_of_other_labels_change_neither_loss_nor_gradient(seed):
    logits, target, labels = random_batch(seed)
    labels[:, 1] = labels[:, 0]  # every sample queries one label
    known = torch.ones_like(labels, dtype=torch.bool)
    before = loss_and_gradient(logits, Truth(target, labels, known, None))
    others = (target != 0) & (target != labels[:, :1, None, None])
    relabelled = torch.where(others & (torch.rand(target.shape) < 0.5), torch.zeros_like(target), target)
    after = loss_and_gradient(logits, Truth(relabelled, labels, known, None))
    assert before[0] == after[0]
    assert torch.equal(before[1], after[1])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_unknown_pairs_change_neither_loss_nor_gradient(seed):
    logits, target, labels = random_batch(seed)
    known = torch.rand(labels.shape) < 0.5
    before = loss_and_gradient(logits, Truth(target, labels, known, None))
    other_logits = torch.where(known[..., None, None], logits, torch.randn_like(logits))
    after = loss_and_gradient(other_logits, Truth(target, labels, known, None))
    assert before[0] == pytest.approx(after[0], abs=1e-6)
    assert torch.allclose(before[1], after[1], atol=1e-7)
    assert before[1][~known].abs().sum() == 0


@given(seed=st.integers(0, 10_000), regions=st.booleans())
@settings(max_examples=30, deadline=None)
def test_ignored_voxels_change_neither_loss_nor_gradient(seed, regions):
    logits, target, labels = random_batch(seed, num_labels=4)
    ignored = torch.rand(target.shape) < 0.3
    queried = QueriedLabels(
        labels, torch.ones_like(labels, dtype=torch.bool), torch.zeros(len(labels), dtype=torch.long)
    )

    def truth(values):
        values = torch.where(ignored, torch.full_like(values, 5), values)
        if not regions:
            return to_truth(values, queried, 5)
        channels = torch.cat([values == k for k in (1, 2, 3, 4, 5)], dim=1)
        return to_truth(channels, queried, 5)

    before = loss_and_gradient(logits, truth(target))
    noise = torch.where(ignored, torch.randn_like(logits), logits)
    after = loss_and_gradient(noise, truth(torch.where(ignored, (target + 1) % 5, target)))
    assert before[0] == pytest.approx(after[0], abs=1e-6)
    assert torch.allclose(before[1], after[1], atol=1e-7)
    assert before[1][ignored.expand_as(logits)].abs().sum() == 0


def test_all_known_is_nnunets_own_loss_with_batch_dice():
    torch.manual_seed(0)
    onehot = torch.rand(4, 3, *SHAPE) < 0.4
    logits = torch.randn(4, 3, *SHAPE)
    labels = torch.arange(1, 4).expand(4, -1)
    truth = Truth(onehot, labels, torch.ones_like(labels, dtype=torch.bool), None)
    stock = DC_and_BCE_loss(
        {}, {"batch_dice": True, "do_bg": True, "smooth": 1e-5, "ddp": False}, dice_class=MemoryEfficientSoftDiceLoss
    )
    assert MaskedDiceBCE()(logits, truth).item() == pytest.approx(stock(logits, onehot.float()).item(), abs=1e-6)


def test_nothing_known_is_zero_with_finite_gradients():
    logits, target, labels = random_batch(1)
    loss, gradient = loss_and_gradient(logits, Truth(target, labels, torch.zeros_like(labels, dtype=torch.bool), None))
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_padding_asks_nothing():
    logits, target, labels = random_batch(2)
    known = torch.ones_like(labels, dtype=torch.bool)
    padded = labels.clone()
    padded[:, 1] = 0
    _, gradient = loss_and_gradient(logits, Truth(target, padded, known, None))
    assert gradient[:, 1].abs().sum() == 0
    assert gradient[:, 0].abs().sum() > 0


def test_dice_is_pooled_over_samples_that_ask_the_same_label():
    """Two samples ask label 1, one of them empty: false positives there cost what they would in one large image."""
    target = torch.zeros(2, 1, *SHAPE, dtype=torch.long)
    target[0, 0, :3] = 1
    labels, known = torch.ones(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool)
    logits = torch.randn(2, 1, *SHAPE)
    apart = MaskedDiceBCE()(logits, Truth(target, labels, known, None))
    joined_logits = torch.cat((logits[:1], logits[1:]), dim=2)
    joined_target = torch.cat((target[:1], target[1:]), dim=2)
    joined = MaskedDiceBCE()(joined_logits, Truth(joined_target, labels[:1], known[:1], None))
    assert apart.item() == pytest.approx(joined.item(), abs=1e-6)


def test_dice_is_skipped_where_the_pooled_target_is_empty_and_bce_still_sees_it():
    target = torch.zeros(2, 1, *SHAPE, dtype=torch.long)
    labels, known = torch.ones(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool)
    logits = torch.full((2, 1, *SHAPE), 2.0)
    loss, gradient = loss_and_gradient(logits, Truth(target, labels, known, None))
    assert loss == pytest.approx(torch.nn.functional.softplus(torch.tensor(2.0)).item(), abs=1e-6)
    assert (gradient > 0).all(), "an annotated but absent label must have a gradient"


def pull_of_the_dice(pooled):
    """Derivative of the Dice part for raising every logit of a batch of which one sample in eight holds the label."""
    target = torch.zeros(8, 1, 32, 32)
    target[0, 0, :5, :5] = 1
    shift = torch.zeros((), requires_grad=True)
    probability = torch.sigmoid(torch.full_like(target, -3.0) + shift)
    if pooled:
        labels, known = torch.ones(8, 1, dtype=torch.long), torch.ones(8, 1, dtype=torch.bool)
        truth, logits = Truth(target.short(), labels, known, None), torch.full_like(target, -3.0) + shift
        loss = -pair_dice(pair_sums(logits, truth.onehot(), torch.ones_like(target)).masses, truth, 1e-5, ddp=False)
    else:  # the usual soft Dice of each sample, smooth = 1
        overlap, mass = (probability * target).sum((1, 2, 3)), (probability + target).sum((1, 2, 3))
        loss = -((2 * overlap + 1) / (mass + 1)).mean()
    return torch.autograd.grad(loss, shift)[0].item()


def released(logits, target, annotated):
    """MultiTalent's loss written out: BCE of each annotated pair and batch Dice of each label, both summed."""
    entropy, dice = 0.0, 0.0
    p = torch.sigmoid(logits)
    for label in range(logits.shape[1]):
        samples = [b for b in range(len(logits)) if label + 1 in annotated[b]]
        y = (target[:, 0] == label + 1).float()
        for b in samples:
            entropy += torch.nn.functional.binary_cross_entropy(p[b, label], y[b])
        true = sum((p[b, label] * y[b]).sum() for b in samples)
        mass = sum((p[b, label] + y[b]).sum() for b in samples)
        dice += 2 * true / mass if samples else 0
    return entropy - dice


def summed(logits, target, annotated):
    every = torch.arange(1, logits.shape[1] + 1).expand(len(logits), -1)
    known = torch.tensor([[label in labels for label in every[0].tolist()] for labels in annotated])
    return MaskedDiceBCE(reduction="sum")(logits, Truth(target, every, known, None))


def random_pairs(samples, labels):
    generator = torch.Generator().manual_seed(labels)
    logits = torch.randn(samples, labels, 12, 10, generator=generator)
    return logits, torch.randint(0, labels + 1, (samples, 1, 12, 10), generator=generator)


def test_the_sum_is_multitalents_released_loss_written_out():
    logits, target = random_pairs(2, 4)
    annotated = ({1, 2, 4}, {2})
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    values = summed(leaves[0], target, annotated), released(leaves[1], target, annotated)
    for value in values:
        value.backward()
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5)
    assert torch.allclose(leaves[0].grad, leaves[1].grad, atol=1e-6)
    assert (leaves[0].grad[:, 2] == 0).all(), "nobody annotates the third"


def test_the_sum_does_not_depend_on_the_size_of_the_batch_and_counts_valid_voxels():
    logits, target = random_pairs(2, 3)
    annotated = ({1, 3}, {2, 3})
    once = summed(logits, target, annotated).item()
    assert summed(logits.repeat(4, 1, 1, 1), target.repeat(4, 1, 1, 1), annotated * 4).item() == pytest.approx(once)
    every, known = torch.arange(1, 4).expand(2, -1), torch.ones(2, 3, dtype=torch.bool)
    valid = torch.zeros(2, 1, 12, 10, dtype=torch.bool)
    valid[:, :, :6] = True
    found = MaskedDiceBCE(reduction="sum")(logits, Truth(target, every, known, valid)).item()
    assert found == pytest.approx(summed(logits[:, :, :6], target[:, :, :6], ({1, 2, 3},) * 2).item(), rel=1e-5)


def gradient_at_the_first(labels, reduction):
    """Of a logit of label 1, annotated beside others."""
    logits, target = random_pairs(2, labels)
    logits[:, :1], shown = random_pairs(2, 1)
    target = torch.where(shown == 1, 1, torch.where(target == 1, 0, target))
    leaf = logits.requires_grad_()
    every, known = torch.arange(1, labels + 1).expand(2, -1), torch.ones(2, labels, dtype=torch.bool)
    MaskedDiceBCE(reduction=reduction)(leaf, Truth(target, every, known, None)).backward()
    return leaf.grad[:, 0].norm().item()


def test_a_label_learns_as_fast_beside_many_others_where_they_are_summed():
    alone = gradient_at_the_first(1, "sum")
    assert [gradient_at_the_first(k, "sum") for k in (2, 7, 14)] == pytest.approx([alone] * 3, rel=1e-5)
    assert gradient_at_the_first(14, "mean") < gradient_at_the_first(1, "mean") / 10


def test_an_empty_majority_does_not_pull_the_prediction_to_nothing():
    """The trap and the way out: a Dice of each sample alone rewards lower logits, the pooled Dice higher ones."""
    assert pull_of_the_dice(pooled=False) > 0
    assert pull_of_the_dice(pooled=True) < 0


def test_half_precision_logits_do_not_overflow():
    target = torch.ones(1, 1, 64, 64, 64, dtype=torch.int16)
    truth = Truth(target, torch.ones(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool), None)
    loss = MaskedDiceBCE()(torch.full((1, 1, 64, 64, 64), 8.0, dtype=torch.half), truth)
    assert loss.item() == pytest.approx(-1.0, abs=1e-2)


def tversky(logits, truth):
    return AdaptiveTverskyBCE()(HermesOutput(logits, torch.zeros(len(logits), 1)), truth)


@pytest.mark.parametrize(
    "loss",
    [MaskedDiceBCE(), MarginalExclusionLoss(), TargetAdaptiveLoss(dice_weight=1.0), ClassWeightedDiceCE(), tversky],
    ids=lambda loss: getattr(loss, "__name__", type(loss).__name__),
)
def test_large_labels_do_not_overflow_under_mixed_precision(loss):
    """Half precision ends at 65,504: more voxels than that belong to one label here."""
    target = torch.zeros(2, 1, 48, 48, 48, dtype=torch.long)
    target[:, :, :40] = 1
    every = torch.tensor([[1, 2]] * 2)
    truth = Truth(target, every, torch.ones_like(every, dtype=torch.bool), None)
    logits = torch.stack((3.0 - 6 * (target[:, 0] != 1), torch.full_like(target[:, 0], -3.0, dtype=torch.float)), 1)
    expected = loss(logits, truth)
    leaf = logits.half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.float16):
        found = loss(leaf, truth)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), abs=1e-3)
    assert leaf.grad.isfinite().all()


def test_hard_counts_are_per_label_and_only_of_known_pairs():
    target = torch.tensor([1, 1, 2, 0]).view(1, 1, 4, 1).expand(2, -1, -1, -1)
    labels, known = torch.tensor([[1], [2]]), torch.tensor([[True], [False]])
    logits = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 4, 1).expand(2, -1, -1, -1)
    counts = hard_counts(logits, Truth(target, labels, known, None), 3)
    assert counts.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]  # tp, fp, fn of label 1 only
