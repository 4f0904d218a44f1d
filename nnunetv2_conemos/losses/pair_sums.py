"""Sums over the voxels of each (sample, label) pair, of which Dice, Tversky and cross-entropy losses are made.

Between forward and backward pass only the logits are kept, and no map of floats is made of all labels at once: memory
and time of a loss on many labels are then those of the network's own output.
Axis letters: **B** sample, **Q** queried labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

AT_ONCE = 2**22  # values of the temporary maps


class PairSums(NamedTuple):
    """Sums [B,Q] over the counted voxels of each pair.

    `counted`: of their weights. `cross_entropy`: the binary one of logits and target. `overlap`: of probability times
    target. `predicted`, `present`: of probability and of target.
    """

    counted: Tensor
    cross_entropy: Tensor
    overlap: Tensor
    predicted: Tensor
    present: Tensor

    @property
    def masses(self) -> Float[Tensor, "B Q 3"]:
        """What `pair_dice` takes: overlap, predicted and present."""
        return torch.stack((self.overlap, self.predicted, self.present), -1)


def pair_sums(
    logits: Float[Tensor, "B Q *S"],
    target: Bool[Tensor, "B Q *S"],
    counted: Bool[Tensor, "#B #Q *#S"] | Float[Tensor, "#B #Q *#S"],
) -> PairSums:
    """Sum over the voxels of each pair, in single precision; gradients flow to `logits`.

    `counted`: the weight of each voxel, or whether it counts; it may broadcast.
    """
    return PairSums(*_PairSums.apply(logits, target, counted))


class _PairSums(torch.autograd.Function):
    """The sums and their gradient, a few labels at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, counted: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(logits, target, counted)
        parts = [sums_of(z, t, c) for z, t, c in in_parts(logits, target, counted)]
        sums = tuple(torch.cat(of_parts, 1) for of_parts in zip(*parts, strict=True))
        ctx.mark_non_differentiable(sums[0], sums[-1])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, target, counted = ctx.saved_tensors
        _, *wanted, _ = (g.view(*g.shape, *(1,) * (logits.ndim - 2)) for g in gradients)
        found, start = torch.empty_like(logits), 0
        for z, t, c in in_parts(logits, target, counted):
            here = slice(start, start := start + z.shape[1])
            cross_entropy, overlap, predicted = (g[:, here] for g in wanted)
            p = torch.sigmoid(full(z))
            of_probability = torch.where(t, overlap + predicted, predicted) * (p * (1 - p))
            found[:, here] = (cross_entropy * (p - t.to(p.dtype)) + of_probability) * c
        return found, None, None


def in_parts(logits: Tensor, target: Tensor, counted: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Split the labels into parts whose maps are small."""
    labels = max(1, AT_ONCE * logits.shape[1] // max(1, logits.numel()))
    weights = counted.expand(-1, logits.shape[1], *counted.shape[2:])
    return zip(logits.split(labels, 1), target.split(labels, 1), weights.split(labels, 1), strict=True)


def sums_of(logits: Tensor, target: Tensor, counted: Tensor) -> tuple[Tensor, ...]:
    """Return the five sums of some labels."""
    z = full(logits)
    t, c = target.to(z.dtype), counted.to(z.dtype).expand_as(z)
    p = torch.sigmoid(z)
    cross_entropy = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    present = t * c
    return tuple(x.flatten(2).sum(2) for x in (c, cross_entropy * c, p * present, p * c, present))


def full(logits: Tensor) -> Tensor:
    """Return logits in single precision at least: sums over a patch overflow half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
