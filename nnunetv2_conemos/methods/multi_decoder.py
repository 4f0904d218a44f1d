"""A shared encoder and one decoder per label (Med3D-like: Chen et al., arXiv:1904.00625)."""

from __future__ import annotations

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.method import Method, answered_labels, has_background_head
from nnunetv2_conemos.networks.multi_decoder import MultiDecoderUNet
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.sampling import Cases
from nnunetv2_conemos.trainer import PartialLabelTrainer

MOST_LABELS = 16


def multi_decoder_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> MultiDecoderUNet:
    """Raises NotImplementedError above MOST_LABELS labels."""
    background = has_background_head(plans)
    num_labels = heads - background
    first = planned_unet(configuration, channels, 1, deep_supervision)
    if num_labels > MOST_LABELS:
        parameters = sum(p.numel() for p in first.decoder.parameters())
        raise NotImplementedError(
            f"MultiDecoderTrainer: {num_labels} labels would need {num_labels} decoders of {parameters / 1e6:.1f} "
            f"million parameters each and their activations; at most {MOST_LABELS} are allowed. Use MultiTalentTrainer."
        )
    rest = [planned_unet(configuration, channels, 1, deep_supervision) for _ in range(num_labels - 1)]
    return MultiDecoderUNet([first, *rest], background, answered_labels(plans, num_labels))


class MultiDecoderTrainer(PartialLabelTrainer):
    """One decoder per label on a shared encoder; all annotated labels of a case at once."""

    method = Method(network=multi_decoder_unet, ask=Cases(), loss=MaskedDiceBCE)
