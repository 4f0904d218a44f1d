"""Sums over the voxels of a pair: those of the formulas written out, with their gradients, however they are split."""

import pytest
import torch

from nnunetv2_conemos.losses import pair_sums as module
from nnunetv2_conemos.losses.pair_sums import PairSums, pair_sums

SHAPE = (2, 5, 4, 3)


def batch(dtype=torch.float64):
    """Logits, targets, and weights of the voxels: of each pair alike, or one by one."""
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(SHAPE, generator=generator)).to(dtype).requires_grad_()
    target = torch.rand(SHAPE, generator=generator) < 0.3
    pairs = torch.rand(2, 5, 1, 1, generator=generator) < 0.7
    voxels = torch.rand(2, 1, 4, 3, generator=generator) < 0.8
    return logits, target, [pairs, pairs & voxels, voxels, torch.rand(SHAPE, generator=generator, dtype=dtype)]


def written_out(logits, target, counted):
    t, c = target.to(logits.dtype), counted.to(logits.dtype).expand_as(logits)
    p = torch.sigmoid(logits)
    cross_entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    return PairSums(*(x.sum((2, 3)) for x in (c, cross_entropy * c, p * t * c, p * c, t * c)))


@pytest.fixture(params=[2**18, 1], ids=["all labels at once", "one label at a time"])
def _parts(request, monkeypatch):
    monkeypatch.setattr(module, "CACHED", request.param)


@pytest.mark.usefixtures("_parts")
@pytest.mark.parametrize("which", range(4))
def test_sums_and_gradients_are_those_of_the_formulas(which):
    logits, target, weights = batch()
    ours, theirs = pair_sums(logits, target, weights[which]), written_out(logits, target, weights[which])
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)
    factors = torch.randn(3, *SHAPE[:2], dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def gradient(sums):
        total = sum((f * s).sum() for f, s in zip(factors, sums[1:4], strict=True))
        return torch.autograd.grad(total, logits)[0]

    torch.testing.assert_close(gradient(ours), gradient(theirs))


@pytest.mark.usefixtures("_parts")
def test_of_half_precision_the_sums_are_exact_to_single_precision():
    logits, target, (pairs, *_) = batch(torch.float16)
    found = pair_sums(logits, target, pairs)
    assert {s.dtype for s in found} == {torch.float32}
    for mine, expected in zip(found, written_out(logits.double(), target, pairs), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-5)
    sum(s.sum() for s in found[1:4]).backward()
    assert logits.grad.dtype == torch.float16


def test_only_logits_targets_and_weights_are_kept_for_the_backward_pass():
    kept = []

    def keep(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    logits, target, (pairs, *_) = batch(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        pair_sums(logits, target, pairs)
    assert sum(kept) == logits.numel() * 4 + target.numel() + pairs.numel()
