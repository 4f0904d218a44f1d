"""The adaptive Tversky loss + BCE, and the loss of the modality."""

import numpy as np
import pytest
import torch
from hermes_models import network, query
from torch import nn

from nnunetv2_conemos.losses.pair_sums import pair_sums
from nnunetv2_conemos.methods.hermes.loss import AdaptiveTverskyBCE, HermesOutput, adaptive_tversky, modality_loss
from nnunetv2_conemos.records import Truth


def truth_of(labels, known=None, modality=(1, 2), size=16, seed=2):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 4, (len(labels), 1, size, size), generator=generator)
    queried = torch.tensor(labels)
    return Truth(target, queried, queried > 0 if known is None else torch.tensor(known), None, torch.tensor(modality))


def test_labels_that_are_not_annotated_change_nothing_and_padding_has_no_gradient():
    outputs, losses, gradients = [], [], []
    for flipped in (False, True):
        made = network()
        truth = truth_of([[1, 3], [3, 0]])
        if flipped:  # label 2 is annotated nowhere: background becomes 2, and 2 becomes background
            other = torch.where(truth.target == 2, 0, torch.where(truth.target == 0, 2, truth.target))
            truth = truth._replace(target=other)
        output = made(query([[1, 3], [3, 0]]))
        output.logits.retain_grad()
        loss = AdaptiveTverskyBCE()(output, truth)
        loss.backward()
        outputs.append(output)
        losses.append(loss)
        gradients.append([p.grad for p in made.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None)
    assert outputs[0].logits.grad[1, 1].abs().sum() == 0
    assert outputs[0].logits.grad[1, 0].abs().sum() > 0


def counts(tp, fp, fn):
    """Return sums over voxels with these counts, from saturated probabilities."""
    predicted = torch.tensor([1.0] * (tp + fp) + [0.0] * (fn + 10))
    target = torch.tensor([True] * tp + [False] * fp + [True] * fn + [False] * 10)
    return sums_of_all((60 * predicted - 30)[None, None], target[None, None])


def sums_of_all(logits, target):
    return pair_sums(logits, target, torch.ones_like(target))


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "share"),
    [(10, 1, 19, 0.2), (10, 6, 4, 0.6), (10, 4, 6, 0.4), (10, 19, 1, 0.8)],
    ids=["below the clamp", "inside", "inside too", "above"],
)
def test_the_tversky_loss_in_closed_form(tp, fp, fn, share):
    expected = 1 - tp / (tp + share * fp + (1 - share) * fn)
    assert adaptive_tversky(counts(tp, fp, fn)).item() == pytest.approx(expected, abs=1e-5)


def test_the_share_of_false_positives_gets_a_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 200, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.rand(2, 3, 200, generator=generator) < 0.4
    (ours,) = torch.autograd.grad(adaptive_tversky(sums_of_all(logits, target)).sum(), logits)
    target = target.double()
    p = torch.sigmoid(logits)
    tp, fp, fn = (p * target).sum(2), (p * (1 - target)).sum(2), ((1 - p) * target).sum(2)
    assert (fp / (fp + fn)).min() > 0.2, "unclamped, so that the quotient below is the same loss"
    assert (fp / (fp + fn)).max() < 0.8
    (direct,) = torch.autograd.grad((1 - tp / (tp + (fp**2 + fn**2) / (fp + fn))).sum(), logits)
    assert torch.allclose(ours, direct, atol=1e-6)


def test_an_absent_label_costs_one_without_gradient_and_an_empty_query_costs_zero():
    logits = torch.randn(1, 1, 50, requires_grad=True)
    cost = adaptive_tversky(sums_of_all(logits, torch.zeros(1, 1, 50, dtype=torch.bool)))
    cost.sum().backward()
    assert cost.item() == 1
    assert logits.grad.abs().max() == 0
    output = HermesOutput(torch.randn(2, 1, 16, 16, requires_grad=True), torch.randn(2, 3, requires_grad=True))
    nothing = AdaptiveTverskyBCE()(output, truth_of([[0], [0]], modality=(0, 0)))
    nothing.backward()
    assert nothing.item() == 0
    assert output.logits.grad.abs().max() == output.modality.grad.abs().max() == 0


def test_every_pair_counts_the_same():
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(2, 22, dtype=torch.long)
    labels[0], labels[1, 0] = torch.arange(1, 23), 5
    target = torch.randint(0, 23, (2, 1, 16, 16), generator=generator)
    logits = torch.randn(2, 22, 16, 16, generator=generator)
    modality = torch.zeros(2, dtype=torch.long)
    together = AdaptiveTverskyBCE()(
        HermesOutput(logits, torch.zeros(2, 1)), Truth(target, labels, labels > 0, None, modality)
    )
    alone = []
    for row, columns in ((0, range(22)), (1, range(1))):
        for column in columns:
            queried = labels[row : row + 1, column : column + 1]
            truth = Truth(target[row : row + 1], queried, queried > 0, None, modality[:1])
            output = HermesOutput(logits[row : row + 1, column : column + 1], torch.zeros(1, 1))
            alone.append(AdaptiveTverskyBCE()(output, truth).item())
    assert together.item() == pytest.approx(np.mean(alone), abs=1e-5)
    assert together.item() != pytest.approx((np.mean(alone[:22]) + alone[22]) / 2, abs=1e-3)


def test_ignored_voxels_do_not_count():
    truth, output = truth_of([[1, 3], [3, 0]]), network()(query([[1, 3], [3, 0]]))
    valid = torch.rand(truth.target.shape) < 0.5
    noise = torch.where(valid, output.logits, torch.randn_like(output.logits))
    plain, other = (
        AdaptiveTverskyBCE()(output._replace(logits=logits), truth._replace(valid=valid))
        for logits in (output.logits, noise)
    )
    assert plain.item() == pytest.approx(other.item(), abs=1e-6)


def test_an_unknown_modality_teaches_the_classifier_nothing():
    output = HermesOutput(torch.zeros(3, 1, 16, 16), torch.randn(3, 3, requires_grad=True))
    loss = modality_loss(output, truth_of([[1]] * 3, modality=(2, 0, 3)))
    expected = nn.functional.cross_entropy(output.modality[[0, 2]], torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert output.modality.grad[1].abs().max() == 0
