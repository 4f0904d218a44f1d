"""Marginal and exclusion loss: what is not annotated counts as background (Shi et al., Medical Image Analysis 2021)."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_conemos.losses.marginal import MarginalExclusionLoss
from nnunetv2_conemos.method import Method, answered_labels
from nnunetv2_conemos.networks.multihead import MultiHeadUNet
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.sampling import Cases
from nnunetv2_conemos.trainer import PartialLabelTrainer


def softmax_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> MultiHeadUNet:
    unet = planned_unet(configuration, channels, heads, deep_supervision)
    return MultiHeadUNet(unet, heads - 1, True, answered_labels(plans, heads - 1), softmax=True)


class MarginalLossTrainer(PartialLabelTrainer):
    """nnU-Net's softmax network with the marginal and exclusion loss; labels exclude each other, so no regions."""

    method = Method(network=softmax_unet, ask=Cases(every=True), loss=MarginalExclusionLoss, regions=False)
