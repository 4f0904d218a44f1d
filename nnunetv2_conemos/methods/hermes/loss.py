"""A Tversky loss that weighs false positives and negatives by their numbers (Hermes: Gao et al., CVPR 2024).

Axis letters: **B** sample, **Q** queried labels, **N** modalities, ***S** space.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.losses.masked import counted_voxels
from nnunetv2_conemos.losses.pair_sums import PairSums, pair_sums
from nnunetv2_conemos.records import Truth

MIN_SHARE, MAX_SHARE = 0.2, 0.8  # share of the false positives
SMOOTH = 1e-6


class HermesOutput(NamedTuple):
    """Output of the network for a query: `logits` [B,Q,*S] of the labels and `modality` [B,N], also logits."""

    logits: Tensor
    modality: Tensor


class AdaptiveTverskyBCE(nn.Module):
    """Mean over known (sample, label) pairs of Tversky loss + BCE, and `modality_weight` x CE of the modality.

    Every pair counts the same, whatever else is queried in its sample. A label that is absent from a patch has a
    Tversky loss of 1 without a gradient, so absence is learnt from the BCE alone. With nothing known it is 0. Each
    process averages over its own pairs.
    """

    def __init__(self, modality_weight: float = 0.01):
        super().__init__()
        self.modality_weight = modality_weight

    def forward(self, output: HermesOutput, truth: Truth) -> Float[Tensor, ""]:
        sums = pair_sums(output.logits, truth.onehot(), counted_voxels(truth))
        bce = sums.cross_entropy / sums.counted.clamp_min(1)
        pairs = (sums.counted > 0).float()
        segmentation = ((bce + adaptive_tversky(sums)) * pairs).sum() / pairs.sum().clamp_min(1)
        return segmentation + self.modality_weight * modality_loss(output, truth)


def adaptive_tversky(sums: PairSums) -> Float[Tensor, "B Q"]:
    """Return 1 - TP / (TP + a FP + (1 - a) FN) with a = FP / (FP + FN), clamped; gradients flow through a."""
    tp = sums.overlap
    fp, fn = sums.predicted - tp, sums.present - tp
    share = (fp / (fp + fn + SMOOTH)).clamp(MIN_SHARE, MAX_SHARE)
    return 1 - tp / (tp + share * fp + (1 - share) * fn + SMOOTH)


def modality_loss(output: HermesOutput, truth: Truth) -> Float[Tensor, ""]:
    """Average the cross-entropy over the samples whose modality is known; 0, with a gradient of 0, if none is."""
    modality = torch.zeros_like(truth.labels[:, 0]) if truth.modality is None else truth.modality
    total = F.cross_entropy(output.modality.float(), modality - 1, ignore_index=-1, reduction="sum")
    return total / (modality > 0).sum().clamp_min(1)
