"""Marginal and exclusion loss for labels that exclude each other (Shi et al., Medical Image Analysis 70, 2021).

Axis letters: **B** sample, **K** labels, all queried in order, **C** = K + 1 classes, background first, ***S** space.
"""

from __future__ import annotations

from jaxtyping import Float
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import Field
from torch import Tensor, nn

from nnunetv2_conemos.losses.class_sums import ClassSums, class_sums
from nnunetv2_conemos.losses.dice import pair_dice
from nnunetv2_conemos.losses.distributed import mean_of_processes
from nnunetv2_conemos.losses.marginalised import counted_here, known_classes
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
        classes, counted = known_classes(truth), counted_here(truth, logits)
        sums = class_sums(logits, classes, truth.known, counted)
        foreground = (counted[:, 0] & (classes > 0)).flatten(1).sum(1, keepdim=True)
        voxels = mean_of_processes(counted.sum().to(sums.cross_entropy), self.ddp).clamp_min(1e-8)
        loss = sums.cross_entropy.sum() / voxels
        loss = loss - pair_dice(sums.masses, truth, self.smooth, self.ddp, skip_empty=False)
        if self.exclusion:
            loss = loss + self.exclusion * self._excluded(sums, ~truth.known, foreground, voxels)
        return loss

    def _excluded(self, sums: ClassSums, unknown: Tensor, foreground: Tensor, voxels: Tensor) -> Tensor:
        """Penalise the overlap of labels that are not annotated with the annotated foreground: Dice, and log(1 + p)."""
        pairs = unknown & (foreground > 0)
        number = mean_of_processes(pairs.sum().to(voxels), self.ddp).clamp_min(1e-8)
        dice = 2 * sums.inside / (sums.predicted + foreground).clamp_min(self.smooth)
        return (dice * pairs).sum() / number + (sums.log_inside * unknown).sum() / voxels


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
