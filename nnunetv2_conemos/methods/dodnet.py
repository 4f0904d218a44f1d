"""DoDNet: the last layers are generated for the label asked (Zhang et al., CVPR 2021, arXiv:2011.10217)."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.method import Method, answered_labels, has_background_head
from nnunetv2_conemos.networks.dynamic_head import WIDTH, DynamicHeadUNet
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.sampling import Pairs
from nnunetv2_conemos.trainer import PartialLabelTrainer


def dynamic_head_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> DynamicHeadUNet:
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels, WIDTH, deep_supervision)
    return DynamicHeadUNet(unet, num_labels, background, answered_labels(plans, num_labels))


class DoDNetTrainer(PartialLabelTrainer):
    """A dynamic head for the label asked, labels drawn as by ConditionalFiLMTrainer; one decoder pass predicts all."""

    method = Method(network=dynamic_head_unet, ask=Pairs(), loss=MaskedDiceBCE)
