"""Marginal and exclusion loss for labels that exclude each other (Shi et al., Medical Image Analysis 70, 2021).

Axis letters: **B** sample, **K** labels, all asked in order, **C** = K + 1 classes with background first, ***S** space.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn

from nnunetv2_conemos.losses.masked import pooled_dice
from nnunetv2_conemos.records import Truth


class MarginalExclusionLoss(nn.Module):
    """Cross-entropy + Dice on what is annotated, labels that are not annotated counted as background.

    The probability of background in a case is that of background or any label not annotated there (marginal loss). The
    exclusion term, of weight `exclusion`, penalises labels that are not annotated where an annotated one stands,
    because labels never overlap. With everything annotated this is nnU-Net's `DC_and_CE_loss` with batch Dice; samples
    in which nothing is annotated do not count. Logits are [B,K,*S] against background, whose logit is 0.
    """

    def __init__(self, ddp: bool = False, exclusion: float = 2.0, smooth: float = 1e-5):
        super().__init__()
        self.ddp, self.exclusion, self.smooth = ddp, exclusion, smooth

    def forward(self, logits: Float[Tensor, "B K *S"], truth: Truth) -> Float[Tensor, ""]:
        space = (1,) * (logits.ndim - 2)
        known = truth.known.view(*truth.known.shape, *space)
        log_p = torch.log_softmax(torch.cat((torch.zeros_like(logits[:, :1]), logits), 1).float(), 1)
        target = (truth.onehot() & known).float()
        counted = counted_here(truth, log_p).float()
        loss = self._cross_entropy(log_p, known, target, counted) + self._dice(log_p, target, counted, truth)
        if self.exclusion:
            loss = loss + self.exclusion * self._excluded(log_p[:, 1:].exp(), ~known, target, counted)
        return loss

    def _cross_entropy(self, log_p: Tensor, known: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        merged = torch.cat((torch.zeros_like(known[:, :1]), known), 1)  # which classes keep a probability of their own
        background = torch.logsumexp(log_p.masked_fill(merged, float("-inf")), 1, keepdim=True)
        right = background * (1 - target.sum(1, keepdim=True)) + (log_p[:, 1:] * target).sum(1, keepdim=True)
        return -(right * counted).sum() / counted.sum().clamp_min(1)

    def _dice(self, log_p: Tensor, target: Tensor, counted: Tensor, truth: Truth) -> Tensor:
        p = log_p[:, 1:].exp() * counted
        target = target * counted
        labels = truth.labels * truth.known
        sums = torch.stack([(p * target).flatten(2).sum(2), p.flatten(2).sum(2), target.flatten(2).sum(2)], dim=-1)
        if self.ddp:
            sums, labels = AllGatherGrad.apply(sums).flatten(0, 1), AllGatherGrad.apply(labels).flatten(0, 1)
        return -pooled_dice(sums.flatten(0, 1), labels.flatten(), self.smooth, skip_empty=False)

    def _excluded(self, p: Tensor, unknown: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Overlap of each label that is not annotated with the annotated foreground: Dice, and log(1 + p)."""
        others = p * unknown * counted
        foreground = target.sum(1, keepdim=True) * counted
        overlap, mass = (others * foreground).flatten(2).sum(2), (others + foreground * unknown).flatten(2).sum(2)
        pairs = unknown.flatten(1) & (foreground.flatten(1).sum(1, keepdim=True) > 0)
        dice = (2 * overlap / mass.clamp_min(self.smooth) * pairs).sum() / pairs.sum().clamp_min(1)
        entropy = (torch.log1p(others) * foreground).sum() / counted.sum().clamp_min(1)
        return dice + entropy


def counted_here(truth: Truth, log_p: Float[Tensor, "B C *S"]) -> Bool[Tensor, "B 1 *S"]:
    """Voxels of samples in which something is annotated, outside the ignore label."""
    annotated = truth.known.any(1).view(-1, *(1,) * (log_p.ndim - 1))
    counted = annotated if truth.valid is None else annotated & truth.valid
    return counted.expand_as(log_p[:, :1])
