"""Cross-entropy marginalised over labels not annotated (PIPO-FAN: Fang & Yan, IEEE TMI 2020; UniMOS).

Weighted by class, it teaches odds of labels against background that are LABEL_WEIGHT / BACKGROUND_WEIGHT too high. The
logarithm of that ratio is the prior by which logits have to be corrected (logit adjustment: Menon et al., ICLR 2021).

Axis letters: **B** sample, **K** labels, all queried in order, **C** = K + 1 classes with background
first, ***S** space. Logits are [B,K,*S] against background, whose logit is 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnunetv2_conemos.losses.dice import batch_dice
from nnunetv2_conemos.losses.distributed import mean_of_processes
from nnunetv2_conemos.losses.marginalised import (
    counted_here,
    known_classes,
    marginalised_log_probabilities,
    shown_labels,
)
from nnunetv2_conemos.records import Truth

BACKGROUND_WEIGHT, LABEL_WEIGHT = 0.2, 1.2
LOG_PRIOR = math.log(LABEL_WEIGHT / BACKGROUND_WEIGHT)
MIN_LOG_P = math.log(1e-10)  # of a log-probability


def weighted_nll(
    log_p: Float[Tensor, "B C *S"], classes: Int[Tensor, " B *S"]
) -> tuple[Float[Tensor, " B *S"], Float[Tensor, " B *S"]]:
    """Return the weighted negative log-likelihood of a class at each voxel, and the weights; background weighs less."""
    weight = torch.where(classes > 0, LABEL_WEIGHT, BACKGROUND_WEIGHT).to(log_p)
    return nll(log_p, classes) * weight, weight


def nll(log_p: Float[Tensor, "B C *S"], classes: Int[Tensor, " B *S"]) -> Float[Tensor, " B *S"]:
    """Return the negative log-likelihood of a class at each voxel."""
    return -log_p.gather(1, classes.long()[:, None])[:, 0].clamp_min(MIN_LOG_P)


class TargetAdaptiveLoss(nn.Module):
    """Cross-entropy, a weighted mean over the voxels of all samples (with `ddp`, of all processes).

    It is 0 where nothing is annotated, and the plain weighted cross-entropy where everything is. Labels not annotated
    enter only through the log-sum-exp of their logits and that of background. `prior` is added to the logits, which a
    network with prior correction gives without it (published: 0). `dice_weight` (published: 0) adds nnU-Net's other
    half: the negative soft Dice of the annotated labels, of the corrected logits, pooled over the same samples, as in
    `MaskedDiceBCE`.
    """

    def __init__(self, ddp: bool = False, dice_weight: float = 0.0, prior: float = 0.0, smooth: float = 1e-5):
        super().__init__()
        self.ddp, self.dice_weight, self.prior, self.smooth = ddp, dice_weight, prior, smooth

    def forward(self, logits: Float[Tensor, "B K *S"], truth: Truth) -> Float[Tensor, ""]:
        tilted = marginalised_log_probabilities(logits.float() + self.prior, truth.known)
        counted = counted_here(truth, logits)
        per_voxel, weight = weighted_nll(tilted, known_classes(truth))
        total = mean_of_processes((weight * counted[:, 0]).sum(), self.ddp)
        loss = (per_voxel * counted[:, 0]).sum() / total.clamp_min(1e-8)
        if self.dice_weight:
            log_p = marginalised_log_probabilities(logits, truth.known)
            p, target = log_p[:, 1:].exp() * counted, (shown_labels(truth) & counted).float()
            loss = loss - self.dice_weight * batch_dice(p, target, truth, self.smooth, self.ddp)
        return loss
