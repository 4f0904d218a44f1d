"""Sums over the voxels of a softmax: those of the formulas written out, with their gradients."""

import pytest
import torch

from nnunetv2_conemos.losses.class_sums import ClassSums, class_sums

B, K, SPACE = 3, 4, (5, 6)
KNOWN = torch.tensor([[True, False, True, False], [True] * 4, [False] * 4])


def batch(dtype=torch.float64, scale=3.0):
    generator = torch.Generator().manual_seed(1)
    logits = (scale * torch.randn(B, K, *SPACE, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    classes = torch.randint(0, K + 1, (B, *SPACE), generator=generator)
    shown = torch.nn.functional.pad(KNOWN, (1, 0), value=True).gather(1, classes.flatten(1)).view_as(classes)
    return logits, classes * shown, torch.rand(B, 1, *SPACE, generator=generator) < 0.7


def written_out(logits, classes, known, counted):
    p = torch.softmax(torch.cat((torch.zeros_like(logits[:, :1]), logits), 1), 1)
    unknown = torch.nn.functional.pad(~known, (1, 0), value=True)[:, :, None, None]
    marginal = torch.cat(((p * unknown).sum(1, keepdim=True), p[:, 1:]), 1)
    right = marginal.gather(1, classes[:, None]).log()
    onehot = torch.nn.functional.one_hot(classes, K + 1).movedim(-1, 1)[:, 1:].to(p.dtype)
    c, labels = counted.to(p.dtype), p[:, 1:]
    foreground = c * onehot.sum(1, keepdim=True)
    maps = (labels * onehot * c, labels * c, onehot * c, labels * foreground, torch.log1p(labels) * foreground)
    return ClassSums(-(right * c).sum((1, 2, 3)), *(x.sum((2, 3)) for x in maps))


def test_sums_and_gradients_are_those_of_the_formulas():
    logits, classes, counted = batch()
    ours, theirs = (function(logits, classes, KNOWN, counted) for function in (class_sums, written_out))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)
    for number, name in enumerate(ClassSums._fields):
        if name != "present":
            factors = torch.randn(ours[number].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
            mine, expected = (
                torch.autograd.grad((s[number] * factors).sum(), logits, retain_graph=True)[0] for s in (ours, theirs)
            )
            torch.testing.assert_close(mine, expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_far_logits_have_finite_sums_and_gradients_that_bring_them_back(dtype):
    """A known label is certain by far where there is background: its logit falls."""
    logits = torch.full((1, 2, 3, 3), -500.0, dtype=dtype)
    logits[:, 0] = 500
    logits.requires_grad_()
    known = torch.tensor([[True, False]])
    sums = class_sums(logits, torch.zeros(1, 3, 3, dtype=torch.long), known, torch.ones(1, 1, 3, 3, dtype=torch.bool))
    sums.cross_entropy.sum().backward()
    assert sums.cross_entropy.isfinite().all()
    assert sums.cross_entropy.item() > 100
    assert (logits.grad[:, 0] > 0).all()
    assert logits.grad.isfinite().all()
