"""Dice + BCE that counts only what is annotated.

Axis letters: **B** sample, **Q** queried labels, **N** = B x Q pairs (over all processes), ***S** space.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from nnunetv2_conemos.losses.dice import pair_dice
from nnunetv2_conemos.losses.distributed import mean_of_processes
from nnunetv2_conemos.losses.pair_sums import PairSums, pair_sums
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
        return self.of_sums(pair_sums(logits, truth.onehot(), counted_voxels(truth)), truth)

    def of_sums(self, sums: PairSums, truth: Truth) -> Float[Tensor, ""]:
        """Return the loss of a batch from the sums of its pairs."""
        return self._bce(sums) + self._dice(sums, truth)

    def _bce(self, sums: PairSums) -> Tensor:
        if not self.summed:
            return sums.cross_entropy.sum() / mean_of_processes(sums.counted.sum(), self.ddp).clamp_min(1e-8)
        of_pair = sums.cross_entropy / sums.counted.clamp_min(1)
        samples = mean_of_processes(of_pair.new_tensor(len(of_pair)), self.ddp)
        return of_pair.sum() * SUMMED_SAMPLES / samples

    def _dice(self, sums: PairSums, truth: Truth) -> Tensor:
        return -pair_dice(sums.masses, truth, self.smooth, self.ddp, summed=self.summed)


def counted_voxels(truth: Truth) -> Bool[Tensor, "B Q *S"]:
    """Mark voxels that count: of known pairs, outside the ignore label. Broadcasts over space if nothing is ignored."""
    known = (truth.known & (truth.labels > 0)).view(*truth.labels.shape, *(1,) * (truth.target.ndim - 2))
    return known if truth.valid is None else known & truth.valid
