"""The U-Net that the plans ask for, and the order in which its parts run.

Walking the parts ourselves lets a network do what does not depend on the label once per image, and the rest per label.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.residual import StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor, nn


@runtime_checkable
class UNet(Protocol):
    """What is used of a planned U-Net; the parts themselves are not typed upstream."""

    encoder: Any
    decoder: Any


class Act(Enum):
    """What a step of the walk does with the current features."""

    APPLY = "features = module(features)"
    KEEP = "remember the features as a skip"
    TURN = "the bottleneck: the encoder is done"
    JOIN = "concatenate the last skip"
    ANSWER = "logits of this resolution = module(features)"


class Step(NamedTuple):
    act: Act
    module: nn.Module | None = None


class State(NamedTuple):
    """Features [N,F,*S], the skips still to be joined, and the logits so far (coarse to fine)."""

    features: Tensor
    skips: tuple[Tensor, ...] = ()
    logits: tuple[Tensor, ...] = ()


def planned_unet(
    configuration: ConfigurationManager, num_input_channels: int, num_output_channels: int, deep_supervision: bool
) -> PlainConvUNet | ResidualEncoderUNet:
    """nnU-Net's own network of a configuration; raises NotImplementedError where it is no planned U-Net."""
    unet = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        allow_init=True,
        deep_supervision=deep_supervision,
    )
    if not isinstance(unet, PlainConvUNet | ResidualEncoderUNet):
        raise NotImplementedError(
            f"network {type(unet).__name__} of these plans is not supported; expected PlainConvUNet or "
            "ResidualEncoderUNet. Use nnU-Net's default or ResEnc plans."
        )
    return unet


def conv_blocks(unet: UNet) -> list[ConvDropoutNormReLU]:
    """Every conv - norm - nonlinearity block, encoder first, residual shortcuts included."""
    parts = (unet.encoder, unet.decoder.stages)
    return [m for part in parts for m in part.modules() if isinstance(m, ConvDropoutNormReLU)]


def unet_steps(unet: UNet) -> Iterator[Step]:
    """The forward pass of a planned U-Net as a list of steps, logits at every scale if it supervises deeply."""
    encoder, decoder = unet.encoder, unet.decoder
    for module in leaves(getattr(encoder, "stem", None)):
        yield Step(Act.APPLY, module)
    for i, stage in enumerate(encoder.stages):
        for module in leaves(stage):
            yield Step(Act.APPLY, module)
        if i + 1 < len(encoder.stages):
            yield Step(Act.KEEP)
    yield Step(Act.TURN)
    last = len(decoder.stages) - 1
    for i, (up, stage, head) in enumerate(zip(decoder.transpconvs, decoder.stages, decoder.seg_layers, strict=True)):
        yield Step(Act.APPLY, up)
        yield Step(Act.JOIN)
        for module in leaves(stage):
            yield Step(Act.APPLY, module)
        if decoder.deep_supervision or i == last:
            yield Step(Act.ANSWER, head)


def leaves(module: nn.Module | None) -> Iterator[nn.Module]:
    """The modules that run one after the other inside purely sequential containers."""
    if module is None:
        return
    if isinstance(module, nn.Sequential | StackedConvBlocks | StackedResidualBlocks | ConvDropoutNormReLU):
        for child in sequence_of(module):
            yield from leaves(child)
    else:
        yield module


def sequence_of(module: nn.Module) -> nn.Sequential:
    """The sequence that a purely sequential container runs; what is appended to it runs after the container."""
    inner = {StackedConvBlocks: "convs", StackedResidualBlocks: "blocks", ConvDropoutNormReLU: "all_modules"}
    return module if isinstance(module, nn.Sequential) else getattr(module, inner[type(module)])


def walk(steps: list[Step], state: State) -> State:
    """Run steps; skips that were kept for fewer samples than the features have are repeated for each label asked."""
    features, skips, logits = state
    for act, module in steps:
        if act is Act.APPLY and module is not None:
            features = module(features)
        elif act is Act.KEEP:
            skips = (*skips, features)
        elif act is Act.JOIN:
            skip = repeat_samples(skips[-1], features.shape[0] // skips[-1].shape[0])
            features, skips = torch.cat((features, skip), 1), skips[:-1]
        elif act is Act.ANSWER and module is not None:
            logits = (*logits, module(features))
    return State(features, skips, logits)


def repeat_samples(x: Tensor, times: int) -> Tensor:
    """[B,...] -> [B*times,...], each sample repeated in place; a copy unless times is 1."""
    return x if times == 1 else x.repeat_interleave(times, 0)
