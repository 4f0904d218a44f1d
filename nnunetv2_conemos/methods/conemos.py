"""CoNeMOS: one network, one label asked at a time (Billot et al., MIDL 2024, PMLR 250:119-130)."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.method import Method, answered_labels, has_background_head, method_options
from nnunetv2_conemos.networks.conditional import ConditionalUNet, FiLMOptions
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.sampling import Pairs
from nnunetv2_conemos.trainer import PartialLabelTrainer


def conditional_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> ConditionalUNet:
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels, 1, deep_supervision)
    options, answered = method_options(configuration, FiLMOptions), answered_labels(plans, num_labels)
    return ConditionalUNet(unet, num_labels, background, options, answered)


class ConditionalFiLMTrainer(PartialLabelTrainer):
    """FiLM in every norm, a label drawn uniformly for each sample, Dice + BCE on that label alone."""

    method = Method(network=conditional_unet, ask=Pairs(), loss=MaskedDiceBCE)
