"""MultiTalent: one sigmoid channel per label; labels that are not annotated are masked (Ulrich et al., MICCAI 2023)."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_conemos.losses.masked import MaskedDiceBCE, Reduction
from nnunetv2_conemos.networks.multihead import MultiHeadUNet
from nnunetv2_conemos.networks.spec import MethodOptions, method_options
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


class MultiTalentOptions(MethodOptions):
    """`reduction` of the loss over the annotated labels: their sum, as in the released code, or their mean."""

    reduction: Reduction = "sum"


def masked_loss(configuration: ConfigurationManager, ddp: bool) -> MaskedDiceBCE:
    """Build the loss with the `reduction` of the configuration."""
    return MaskedDiceBCE(ddp, reduction=method_options(configuration, MultiTalentOptions).reduction)


class MultiTalentTrainer(PartialLabelTrainer):
    """The masked multi-head baseline: all annotated labels of a case, datasets sampled by the root of their size.

    Labels are shared between sources by name; `conemos merge --keep-apart` gives each its own channel.
    """

    method = Method(network=MultiHeadUNet, sampler=Cases(), loss=masked_loss, options=MultiTalentOptions)
