"""Soft Dice pooled over the pairs of a batch that query the same label.

Axis letters: **B** sample, **Q** queried labels, **N** = B x Q pairs (over all processes), ***S** space.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnunetv2_conemos.losses.distributed import of_all_processes
from nnunetv2_conemos.records import Truth


def batch_dice(
    probability: Float[Tensor, "B Q *S"],
    target: Float[Tensor, "B Q *S"],
    truth: Truth,
    smooth: float,
    ddp: bool,
    skip_empty: bool = True,
    weight_of: Float[Tensor, " labels"] | None = None,
) -> Float[Tensor, ""]:
    """Compute `pair_dice` of two maps, both 0 where nothing counts."""
    masses = torch.stack([m.flatten(2).sum(2) for m in (probability * target, probability, target)], -1)
    return pair_dice(masses, truth, smooth, ddp, skip_empty, weight_of)


def pair_dice(
    masses: Float[Tensor, "B Q 3"],
    truth: Truth,
    smooth: float,
    ddp: bool,
    skip_empty: bool = True,
    weight_of: Float[Tensor, " labels"] | None = None,
    summed: bool = False,
) -> Float[Tensor, ""]:
    """Compute `pooled_dice` of the known pairs of a batch, with `ddp` of all processes.

    `masses` are intersection, predicted and target mass of each pair.
    """
    sums = masses.flatten(0, 1)
    labels = (truth.labels * truth.known).flatten()  # 0: padding
    if ddp:
        sums, labels = of_all_processes(sums), of_all_processes(labels)
    return pooled_dice(sums, labels, smooth, skip_empty, weight_of, summed)


def pooled_dice(
    sums: Float[Tensor, "N 3"],
    labels: Int[Tensor, " N"],
    smooth: float,
    skip_empty: bool = True,
    weight_of: Float[Tensor, " labels"] | None = None,
    summed: bool = False,
) -> Float[Tensor, ""]:
    """Average the soft Dice over the distinct labels > 0 whose pooled target is not empty; 0 where there is none.

    `sums` holds intersection, predicted and target mass of each pair. Without `skip_empty`, empty targets count too.
    `weight_of` (index: label, from 0) scales the Dice of each label; the mean still counts labels. `summed`: the sum
    over the labels instead.
    """
    same = (labels[:, None] == labels[None]) & (labels > 0)
    # A matrix product would run in half precision under autocast, which overflows above 65,504 voxels.
    intersection, predicted, target = (same[..., None] * sums).sum(1).unbind(-1)
    dice = (2 * intersection + smooth) / (predicted + target + smooth).clamp_min(1e-8)
    pairs_of_label = same.sum(1).clamp_min(1)
    counts = labels > 0
    if skip_empty:
        counts &= target > 0
    weight = counts / pairs_of_label  # every label weighs 1, however many pairs query it
    if weight_of is not None:
        dice = dice * weight_of[labels]
    total = (dice * weight).sum()
    return total if summed else total / weight.sum().clamp_min(1)
