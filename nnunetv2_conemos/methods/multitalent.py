"""MultiTalent: one sigmoid channel per label; labels that are not annotated are masked (Ulrich et al., MICCAI 2023)."""

from __future__ import annotations

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.multihead import MultiHeadUNet
from nnunetv2_conemos.training.method import Method, without_options
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


class MultiTalentTrainer(PartialLabelTrainer):
    """The masked multi-head baseline: all annotated labels of a case, datasets sampled by the root of their size.

    Labels are shared between sources by name; `conemos merge --keep-apart` gives each its own channel.
    """

    method = Method(network=MultiHeadUNet, sampler=Cases(), loss=without_options(MaskedDiceBCE))
