"""A network that is asked for a set of labels and answers them in one pass: our own variant of CoNeMOS."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.method import Method, answered_labels, has_background_head, method_options
from nnunetv2_conemos.networks.label_set import LabelSetOptions, LabelSetUNet
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.sampling import Pairs
from nnunetv2_conemos.trainer import PartialLabelTrainer


def label_set_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> LabelSetUNet:
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels, num_labels, deep_supervision)
    options, answered = method_options(configuration, LabelSetOptions), answered_labels(plans, num_labels)
    return LabelSetUNet(unet, num_labels, background, options, answered)


class LabelSetFiLMTrainer(PartialLabelTrainer):
    """FiLM conditioned on the set asked: one label, those annotated in the case, or all; each a third of the samples.

    Every label is met equally often, as in ConditionalFiLMTrainer; the loss counts the labels asked and known.
    """

    method = Method(network=label_set_unet, ask=Pairs(("one", "annotated", "all")), loss=MaskedDiceBCE)
