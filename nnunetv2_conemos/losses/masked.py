"""Dice + BCE that counts only what is annotated.

Axis letters: **B** sample, **Q** queried labels, **N** = B x Q pairs (over all processes), ***S** space.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nnunetv2_conemos.losses.dice import batch_dice
from nnunetv2_conemos.losses.distributed import mean_of_processes
from nnunetv2_conemos.records import Truth

Reduction = Literal["mean", "sum"]
SUMMED_SAMPLES = 2.0  # of a batch, over which the released code of MultiTalent sums the cross-entropy of a label


class MaskedDiceBCE(nn.Module):
    """nnU-Net's loss for binary maps (soft Dice + BCE, equal weights) over the known (sample, label) pairs.

    The BCE is a mean over the valid voxels of every known pair. The Dice is pooled over the pairs of the batch that
    query the same label, and skipped where their pooled target is empty: one sample at a time, an empty target rewards
    predicting nothing, and in 2D or for small organs most targets are empty. With everything known this is nnU-Net's
    `DC_and_BCE_loss` with batch Dice; with nothing known it is 0. With `ddp` both cover the samples of all processes.

    With the `reduction` "sum" both are sums over labels, so that a label learns as fast beside many others as alone
    (Ulrich et al., MICCAI 2023): the BCE is the sum of the means over the voxels of each pair, for batches of 2 samples
    as in the released code, scaled to that for others.
    """

    def __init__(self, ddp: bool = False, smooth: float = 1e-5, reduction: Reduction = "mean"):
        super().__init__()
        self.ddp, self.smooth, self.summed = ddp, smooth, reduction == "sum"

    def forward(self, logits: Float[Tensor, "B Q *S"], truth: Truth) -> Float[Tensor, ""]:
        logits = logits.float()  # sums over a patch overflow half precision
        target = truth.onehot().float()
        counted = counted_voxels(truth).float().expand_as(logits)
        return self._bce(logits, target, counted) + self._dice(logits, target, counted, truth)

    def _bce(self, logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if not self.summed:
            return (per_voxel * counted).sum() / mean_of_processes(counted.sum(), self.ddp).clamp_min(1e-8)
        of_pair = (per_voxel * counted).flatten(2).sum(2) / counted.flatten(2).sum(2).clamp_min(1)
        samples = mean_of_processes(of_pair.new_tensor(len(of_pair)), self.ddp)
        return of_pair.sum() * SUMMED_SAMPLES / samples

    def _dice(self, logits: Tensor, target: Tensor, counted: Tensor, truth: Truth) -> Tensor:
        probability = torch.sigmoid(logits)
        return -batch_dice(probability, target, truth, self.smooth, self.ddp, summed=self.summed, weight=counted)


def counted_voxels(truth: Truth) -> Bool[Tensor, "B Q *S"]:
    """Mark voxels that count: of known pairs, outside the ignore label. Broadcasts over space if nothing is ignored."""
    known = (truth.known & (truth.labels > 0)).view(*truth.labels.shape, *(1,) * (truth.target.ndim - 2))
    return known if truth.valid is None else known & truth.valid
