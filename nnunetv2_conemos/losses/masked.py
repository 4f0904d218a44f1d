"""Dice + BCE that counts only what is annotated.

Axis letters: **B** sample, **Q** queried labels, **N** = B x Q pairs (over all processes), ***S** space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nnunetv2_conemos.losses.dice import batch_dice
from nnunetv2_conemos.losses.distributed import mean_of_processes
from nnunetv2_conemos.records import Truth


class MaskedDiceBCE(nn.Module):
    """nnU-Net's loss for binary maps (soft Dice + BCE, equal weights) over the known (sample, label) pairs.

    The BCE is a mean over the valid voxels of every known pair. The Dice is pooled over the pairs of the batch that
    query the same label, and skipped where their pooled target is empty: one sample at a time, an empty target rewards
    predicting nothing, and in 2D or for small organs most targets are empty. With everything known this is nnU-Net's
    `DC_and_BCE_loss` with batch Dice; with nothing known it is 0. With `ddp` both cover the samples of all processes.
    """

    def __init__(self, ddp: bool = False, smooth: float = 1e-5):
        super().__init__()
        self.ddp, self.smooth = ddp, smooth

    def forward(self, logits: Float[Tensor, "B Q *S"], truth: Truth) -> Float[Tensor, ""]:
        logits = logits.float()  # sums over a patch overflow half precision
        target = truth.onehot().float()
        counted = counted_voxels(truth).float().expand_as(logits)
        return self._bce(logits, target, counted) + self._dice(logits, target, counted, truth)

    def _bce(self, logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (per_voxel * counted).sum() / mean_of_processes(counted.sum(), self.ddp).clamp_min(1e-8)

    def _dice(self, logits: Tensor, target: Tensor, counted: Tensor, truth: Truth) -> Tensor:
        return -batch_dice(torch.sigmoid(logits) * counted, target * counted, truth, self.smooth, self.ddp)


def counted_voxels(truth: Truth) -> Bool[Tensor, "B Q *S"]:
    """Mark voxels that count: of known pairs, outside the ignore label. Broadcasts over space if nothing is ignored."""
    known = (truth.known & (truth.labels > 0)).view(*truth.labels.shape, *(1,) * (truth.target.ndim - 2))
    return known if truth.valid is None else known & truth.valid
