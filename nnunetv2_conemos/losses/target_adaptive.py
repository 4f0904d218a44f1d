"""Cross-entropy that counts what is not annotated as background (PIPO-FAN: Fang & Yan, IEEE TMI 2020; UniMOS).

Axis letters: **B** sample, **K** labels, all asked in order, **C** = K + 1 classes with background first, ***S** space.
Logits are [B,K,*S] against background, whose logit is 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from nnunetv2_conemos.records import Truth

BACKGROUND_WEIGHT, LABEL_WEIGHT = 0.2, 1.2
LOWEST = math.log(1e-10)  # of a log-probability


def merged_log_probabilities(logits: Float[Tensor, "B K *S"], known: Bool[Tensor, "B K"]) -> Float[Tensor, "B C *S"]:
    """log p of background or anything unknown, then of each known label; unknown labels have a probability of 0."""
    log_p = torch.log_softmax(torch.cat((torch.zeros_like(logits[:, :1]), logits), 1).float(), 1)
    own = known.view(*known.shape, *(1,) * (logits.ndim - 2))
    merged = torch.cat((torch.zeros_like(own[:, :1]), own), 1)
    background = torch.logsumexp(log_p.masked_fill(merged, -math.inf), 1, keepdim=True)
    return torch.cat((background, log_p[:, 1:].masked_fill(~own, -math.inf)), 1)


def weighted_nll(
    log_p: Float[Tensor, "B C *S"], classes: Int[Tensor, " B *S"]
) -> tuple[Float[Tensor, " B *S"], Float[Tensor, " B *S"]]:
    """Weighted negative log-likelihood of a class at each voxel, and the weights: background counts less."""
    weight = torch.where(classes > 0, LABEL_WEIGHT, BACKGROUND_WEIGHT).to(log_p)
    right = log_p.gather(1, classes.long()[:, None])[:, 0].clamp_min(LOWEST)
    return -right * weight, weight


class TargetAdaptiveLoss(nn.Module):
    """Weighted mean of the cross-entropy over the voxels of all samples; 0 where nothing is annotated.

    With everything annotated it is the weighted cross-entropy. What is not annotated enters through the log-sum-exp of
    its logits and that of background alone.
    """

    def __init__(self, ddp: bool = False):
        super().__init__()

    def forward(self, logits: Float[Tensor, "B K *S"], truth: Truth) -> Float[Tensor, ""]:
        nll, weight = weighted_nll(merged_log_probabilities(logits, truth.known), known_classes(truth))
        counted = truth.known.any(1).view(-1, *(1,) * (nll.ndim - 1)).expand_as(nll)
        if truth.valid is not None:
            counted = counted & truth.valid[:, 0]
        return (nll * counted).sum() / (weight * counted).sum().clamp_min(1e-8)


def known_classes(truth: Truth) -> Int[Tensor, " B *S"]:
    """The class of each voxel among background and the known labels."""
    space = (1,) * (truth.target.ndim - 2)
    shown = truth.onehot() & truth.known.view(*truth.known.shape, *space)
    return (shown * truth.labels.view(*truth.labels.shape, *space)).sum(1)
