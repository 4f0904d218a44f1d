"""Cross-entropy and Dice with a weight per class, marginalised over labels that are not annotated (A&D).

A&D: Wang & Li, NeurIPS 2023. Axis letters: **B** sample, **K** labels, all queried in order, **C** = K + 1 classes with
background first, ***S** space. Logits are [B,K,*S] against background, whose logit is 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
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


class ClassWeightedDiceCE(nn.Module):
    """Cross-entropy (a weighted mean over voxels) minus the mean over labels of weight x Dice.

    The Dice is pooled over the batch, with 1 added to both sides of the fraction, and covers the labels that a sample
    of the batch is annotated for. The scale of the weights [C] changes the Dice term alone; without them all are 1.
    Samples in which nothing is annotated, and ignored voxels, do not count. With `ddp` both are over all processes.
    """

    def __init__(self, ddp: bool = False, smooth: float = 1.0):
        super().__init__()
        self.ddp, self.smooth = ddp, smooth

    def forward(
        self, logits: Float[Tensor, "B K *S"], truth: Truth, weight: Float[Tensor, " C"] | None = None
    ) -> Float[Tensor, ""]:
        weight = logits.new_ones(logits.shape[1] + 1, dtype=torch.float32) if weight is None else weight
        log_p = marginalised_log_probabilities(logits, truth.known)
        counted = counted_here(truth, logits)
        return self._cross_entropy(log_p, truth, counted, weight) + self._dice(log_p, truth, counted, weight)

    def _cross_entropy(self, log_p: Tensor, truth: Truth, counted: Tensor, weight: Tensor) -> Tensor:
        classes = known_classes(truth)
        of_voxel = weight[classes] * counted[:, 0]
        right = log_p.gather(1, classes[:, None])[:, 0]
        return -(right * of_voxel).sum() / mean_of_processes(of_voxel.sum(), self.ddp).clamp_min(1e-8)

    def _dice(self, log_p: Tensor, truth: Truth, counted: Tensor, weight: Tensor) -> Tensor:
        p, target = log_p[:, 1:].exp() * counted, (shown_labels(truth) & counted).float()
        return -batch_dice(p, target, truth, self.smooth, self.ddp, skip_empty=False, weight_of=weight)
