"""Marginal and exclusion loss for labels that exclude each other (Shi et al., Medical Image Analysis 70, 2021).

Axis letters: **B** sample, **K** labels, all queried in order, **C** = K + 1 classes, background first, ***S** space.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import Field
from torch import Tensor, nn

from nnunetv2_conemos.losses.dice import batch_dice
from nnunetv2_conemos.losses.distributed import mean_of_processes
from nnunetv2_conemos.losses.marginalised import (
    class_log_probabilities,
    counted_here,
    known_classes,
    marginalised_log_probabilities,
)
from nnunetv2_conemos.networks.multihead import MultiHeadUNet
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec, method_options
from nnunetv2_conemos.records import Truth
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


class MarginalExclusionLoss(nn.Module):
    """Cross-entropy + Dice, marginalised over the labels that are not annotated, which count as background.

    The probability of background in a case is that of background or any label not annotated there (marginal loss). The
    exclusion term, of weight `exclusion`, penalises labels that are not annotated where an annotated label is,
    because labels never overlap. With everything annotated this is nnU-Net's `DC_and_CE_loss` with batch Dice; samples
    in which nothing is annotated do not count. With `ddp` all three cover the samples of all processes. Logits are
    [B,K,*S] against background, whose logit is 0.
    """

    def __init__(self, ddp: bool = False, exclusion: float = 2.0, smooth: float = 1e-5):
        super().__init__()
        self.ddp, self.exclusion, self.smooth = ddp, exclusion, smooth

    def forward(self, logits: Float[Tensor, "B K *S"], truth: Truth) -> Float[Tensor, ""]:
        space = (1,) * (logits.ndim - 2)
        known = truth.known.view(*truth.known.shape, *space)
        log_p = class_log_probabilities(logits)
        target = (truth.onehot() & known).float()
        counted = counted_here(truth, logits).float()
        loss = self._cross_entropy(logits, counted, truth) + self._dice(log_p, target, counted, truth)
        if self.exclusion:
            loss = loss + self.exclusion * self._excluded(log_p[:, 1:].exp(), ~known, target, counted)
        return loss

    def _cross_entropy(self, logits: Tensor, counted: Tensor, truth: Truth) -> Tensor:
        right = marginalised_log_probabilities(logits, truth.known).gather(1, known_classes(truth)[:, None])
        return -(right * counted).sum() / mean_of_processes(counted.sum(), self.ddp).clamp_min(1e-8)

    def _dice(self, log_p: Tensor, target: Tensor, counted: Tensor, truth: Truth) -> Tensor:
        p = log_p[:, 1:].exp() * counted
        return -batch_dice(p, target * counted, truth, self.smooth, self.ddp, skip_empty=False)

    def _excluded(self, p: Tensor, unknown: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Penalise the overlap of labels that are not annotated with the annotated foreground: Dice, and log(1 + p)."""
        others = p * unknown * counted
        foreground = target.sum(1, keepdim=True) * counted
        overlap, mass = (others * foreground).flatten(2).sum(2), (others + foreground * unknown).flatten(2).sum(2)
        pairs = unknown.flatten(1) & (foreground.flatten(1).sum(1, keepdim=True) > 0)
        number, voxels = (mean_of_processes(of.float().sum(), self.ddp).clamp_min(1e-8) for of in (pairs, counted))
        dice = (2 * overlap / mass.clamp_min(self.smooth) * pairs).sum() / number
        entropy = (torch.log1p(others) * foreground).sum() / voxels
        return dice + entropy


class MarginalOptions(MethodOptions):
    """`exclusion`: weight of the exclusion term (published: 2); 0: the marginal loss alone."""

    exclusion: float = Field(default=2.0, ge=0, allow_inf_nan=False)


def marginal_loss(configuration: ConfigurationManager, ddp: bool) -> MarginalExclusionLoss:
    """Build the loss with the `exclusion` of the configuration."""
    return MarginalExclusionLoss(ddp, method_options(configuration, MarginalOptions).exclusion)


def softmax_unet(spec: NetworkSpec) -> MultiHeadUNet:
    """Build a planned U-Net with the background channel of a softmax."""
    return MultiHeadUNet(spec, softmax=True)


class MarginalLossTrainer(PartialLabelTrainer):
    """nnU-Net's softmax network with the marginal and exclusion loss; labels exclude each other, so no regions."""

    method = Method(
        network=softmax_unet,
        sampler=Cases(every=True),
        loss=marginal_loss,
        options=MarginalOptions,
        regions=False,
    )
