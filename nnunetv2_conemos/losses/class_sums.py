"""Sums over the voxels of a softmax, of which the marginal loss is made, with a gradient in closed form.

Only the logits, the class of each voxel and a few maps without a label axis are kept between forward and backward pass.
Axis letters: **B** sample, **K** labels, all queried in order, **V** voxels, ***S** space.
Logits are [B,K,*S] against background, whose logit is 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunetv2_conemos.losses.pair_sums import full

TINY = torch.finfo(torch.float32).tiny


class ClassSums(NamedTuple):
    """Sums over the counted voxels of each sample.

    `cross_entropy` [B]: of the class of each voxel, where background is joined by the labels that are not known.
    The others are [B,K]. `overlap`: of the probability of a label where it is the class. `predicted`, `present`: of its
    probability, of the voxels whose class it is. `inside`: of its probability on all foreground, whatever its class;
    `log_inside`: of log(1 + probability) there.
    """

    cross_entropy: Tensor
    overlap: Tensor
    predicted: Tensor
    present: Tensor
    inside: Tensor
    log_inside: Tensor

    @property
    def masses(self) -> Float[Tensor, "B K 3"]:
        """What `pair_dice` takes: overlap, predicted and present."""
        return torch.stack((self.overlap, self.predicted, self.present), -1)


def class_sums(
    logits: Float[Tensor, "B K *S"],
    classes: Int[Tensor, " B *S"],
    known: Bool[Tensor, "B K"],
    counted: Bool[Tensor, "B 1 *S"],
) -> ClassSums:
    """Sum over the voxels of each sample, in single precision at least; gradients flow to `logits`.

    `classes`: 0, or the known label of a voxel; `counted`: the voxels that count.
    """
    flat = logits.flatten(2), classes.flatten(1), known, counted.flatten(1)
    with torch.autocast(logits.device.type, enabled=False):  # matrix products would run in half precision
        return ClassSums(*_ClassSums.apply(*flat))


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, known: Tensor, counted: Tensor) -> tuple[Tensor, ...]:
        z = full(logits)
        p, log_total = softmax_against_zero(z)
        unknown, background = (~known).to(z.dtype), classes == 0
        here = (classes - 1).clamp_min(0)[:, None]
        rest = torch.exp(-log_total) + torch.bmm(unknown[:, None], p)[:, 0]  # of background and unknown labels
        right = torch.where(background, rest.clamp_min(TINY).log(), z.gather(1, here)[:, 0] - log_total)
        c, foreground = counted.to(z.dtype), (counted & ~background).to(z.dtype)
        predicted, inside = torch.bmm(p, torch.stack((c, foreground), 2)).unbind(2)
        log_inside = torch.bmm(torch.log1p(p), foreground[:, :, None])[:, :, 0]
        own = p.gather(1, here)[:, 0]
        overlap, present = (per_class(x, classes, known.shape[1]) for x in (own * foreground, foreground))
        ctx.save_for_backward(logits, classes, known, counted, log_total, rest)
        ctx.mark_non_differentiable(present)
        return -(right * c).sum(1), overlap, predicted, present, inside, log_inside

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        logits, classes, known, counted, log_total, rest = ctx.saved_tensors
        of_entropy, of_overlap, of_predicted, _, of_inside, of_log = gradients
        p = torch.exp(logits - log_total[:, None])
        background = classes == 0
        here = (classes - 1).clamp_min(0)
        c, foreground = counted.to(p.dtype), (counted & ~background).to(p.dtype)
        factors = torch.stack((of_predicted, of_inside), 2), torch.stack((c, foreground), 1)
        of_p = torch.bmm(*factors).addcdiv_(of_log[:, :, None] * foreground[:, None], 1 + p)
        of_p.scatter_add_(1, here[:, None], (of_overlap.gather(1, here) * foreground)[:, None])
        # Through the softmax. The cross-entropy gives p - 1 at the class; for background, p less its share of `rest`.
        entropy = of_entropy[:, None] * c
        of_p += (entropy - (of_p * p).sum(1))[:, None]
        shares = entropy * background / rest.clamp_min(TINY)
        of_p.baddbmm_((~known).to(p.dtype)[:, :, None], shares[:, None], alpha=-1)
        found = of_p.mul_(p).scatter_add_(1, here[:, None], -(entropy * ~background)[:, None])
        return found.to(logits.dtype), None, None, None


def softmax_against_zero(z: Float[Tensor, "B K V"]) -> tuple[Float[Tensor, "B K V"], Float[Tensor, "B V"]]:
    """Return the probability of each label, and the logarithm of the sum over background (logit 0) and labels."""
    largest = z.amax(1, keepdim=True).clamp_min(0)
    p = (z - largest).exp_()
    total = p.sum(1, keepdim=True) + torch.exp(-largest)
    return p.div_(total), (largest + total.log())[:, 0]


def per_class(values: Float[Tensor, "B V"], classes: Int[Tensor, "B V"], labels: int) -> Float[Tensor, "B K"]:
    """Sum values by the class of their voxel, without background."""
    return values.new_zeros(len(values), labels + 1).scatter_add_(1, classes, values)[:, 1:]
