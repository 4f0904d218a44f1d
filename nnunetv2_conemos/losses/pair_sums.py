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

CACHED, ON_GPU = 2**18, 2**25  # values of the temporary maps: on a CPU, they stay in its cache


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
    with torch.autocast(logits.device.type, enabled=False):  # products would be summed in half precision
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
            found[:, here] = gradient_of(z, t, c, *(g[:, here] for g in wanted))
        return found, None, None


def in_parts(logits: Tensor, target: Tensor, counted: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Split the labels into parts whose maps are small."""
    values = CACHED if logits.device.type == "cpu" else ON_GPU
    labels = max(1, values * logits.shape[1] // max(1, logits.numel()))
    weights = counted.expand(len(logits), logits.shape[1], *counted.shape[2:])
    return zip(logits.split(labels, 1), target.split(labels, 1), weights.split(labels, 1), strict=True)


def sums_of(logits: Tensor, target: Tensor, counted: Tensor) -> tuple[Tensor, ...]:
    """Return the five sums of some labels."""
    z = full(logits).flatten(2)
    t, weight = target.flatten(2).to(z.dtype), counted.flatten(2).to(z.dtype)
    of_pair, voxels = alike(weight), z.shape[2]
    if of_pair is None:
        t = t * weight
    p, entropy = torch.sigmoid(z), F.softplus(z)
    predicted, certain = (x.sum(2) if of_pair is not None else dot(x, weight) for x in (p, entropy))
    sums = (certain - dot(z, t), dot(p, t), predicted, t.sum(2))
    if of_pair is None:
        return weight.sum(2), *sums
    return of_pair * voxels, *(of_pair * x for x in sums)


def gradient_of(
    logits: Tensor, target: Tensor, counted: Tensor, of_entropy: Tensor, of_overlap: Tensor, of_predicted: Tensor
) -> Tensor:
    """Return the gradient of some labels: (1 - p) p (of_overlap t + of_predicted) + of_entropy (p - t), weighted."""
    p = torch.sigmoid(full(logits))
    t, weight = target.to(p.dtype), counted.to(p.dtype)
    found = (1 - p).mul_((t * of_overlap).add_(of_predicted)).add_(of_entropy).mul_(p)
    return found.addcmul_(t, of_entropy, value=-1).mul_(weight)


def alike(weight: Float[Tensor, "B Q V"]) -> Float[Tensor, "B Q"] | None:
    """Return the one weight of all voxels of each pair, or None where each voxel has its own."""
    return weight[:, :, 0] if weight.shape[2] == 1 else None


def dot(one: Float[Tensor, "B Q V"], other: Float[Tensor, "B Q V"]) -> Float[Tensor, "B Q"]:
    """Sum the products over the voxels."""
    return torch.einsum("bqv,bqv->bq", one, other)


def full(logits: Tensor) -> Tensor:
    """Return logits in single precision at least: sums over a patch overflow half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
