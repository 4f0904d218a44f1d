"""The U-Net of the plans, run as a whole or stage by stage.

Running the stages ourselves lets a network compute those that do not depend on the label once per image.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn

from nnunetv2_conemos.errors import UnsupportedError

PlannedUNet: TypeAlias = PlainConvUNet | ResidualEncoderUNet
UNet: TypeAlias = Any  # has the `encoder` and `decoder` of a planned U-Net, which are not typed upstream


class UNetState(NamedTuple):
    """Features [N,F,*S], the skips still to be concatenated, and the logits so far (coarse to fine)."""

    features: Tensor
    skips: tuple[Tensor, ...] = ()
    logits: tuple[Tensor, ...] = ()


def planned_unet(
    configuration: ConfigurationManager, num_input_channels: int, num_output_channels: int, deep_supervision: bool
) -> PlannedUNet:
    """Build nnU-Net's own network of a configuration; raises NotImplementedError for other networks."""
    unet = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        allow_init=True,
        deep_supervision=deep_supervision,
    )
    if not isinstance(unet, PlannedUNet):
        raise UnsupportedError(
            f"network {type(unet).__name__} of these plans is not supported; expected PlainConvUNet or "
            "ResidualEncoderUNet. Use nnU-Net's default or ResEnc plans."
        )
    return unet


def conv_blocks(module: nn.Module) -> list[ConvDropoutNormReLU]:
    """List every conv - norm - nonlinearity block, residual shortcuts included."""
    return [m for m in module.modules() if isinstance(m, ConvDropoutNormReLU)]


def num_stages(unet: UNet) -> int:
    """Count the stages of encoder and decoder."""
    return len(unet.encoder.stages) + len(unet.decoder.stages)


def run_stages(unet: UNet, state: UNetState, stages: range) -> UNetState:
    """Run some stages, those of the encoder first; with deep supervision, compute logits at every decoder scale.

    Skips of fewer samples than the features have are repeated for each query.
    """
    encoder, decoder = unet.encoder, unet.decoder
    features, skips, logits = state
    for number in stages:
        level = number - len(encoder.stages)
        if level < 0:
            stem = getattr(encoder, "stem", None) if number == 0 else None
            features = encoder.stages[number](features if stem is None else stem(features))
            skips = (*skips, features) if level < -1 else skips
        else:
            skip = repeat_samples(skips[-1], features.shape[0] // skips[-1].shape[0])
            features = torch.cat((decoder.transpconvs[level](features), skip), 1)
            features, skips = decoder.stages[level](features), skips[:-1]
            if decoder.deep_supervision or level + 1 == len(decoder.stages):
                logits = (*logits, decoder.seg_layers[level](features))
    return UNetState(features, skips, logits)


def repeat_samples(x: Tensor, times: int) -> Tensor:
    """Repeat each sample of [B,...] consecutively, to [B*times,...]; a copy unless times is 1."""
    return x if times == 1 else x.repeat_interleave(times, 0)
