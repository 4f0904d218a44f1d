"""MultiTalent: one sigmoid channel per label, what is not annotated is masked (Ulrich et al., MICCAI 2023)."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.multihead import MultiHeadUNet
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import has_background_head, output_labels_of
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


def multi_head_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> MultiHeadUNet:
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels, num_labels, deep_supervision)
    return MultiHeadUNet(unet, num_labels, background, output_labels_of(plans, num_labels))


class MultiTalentTrainer(PartialLabelTrainer):
    """The masked multi-head baseline: all annotated labels of a case at once, datasets drawn by the root of their size.

    Labels are shared between sources by name; `conemos merge --keep-apart` gives each its own channel.
    """

    method = Method(network=multi_head_unet, sampler=Cases(), loss=MaskedDiceBCE)
