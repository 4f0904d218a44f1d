"""A U-Net with a pyramid of inputs and a pyramid of outputs (PIPO-FAN: Fang & Yan, IEEE TMI 2020).

The published network in any dimension, with the widths and strides of the plans, and with instance norms instead of
batch norms, whose statistics would mix labelled, weakly and strongly augmented images.
Axis letters: **B** sample, **M** input channel, **F** features, **C** classes, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm, get_matching_pool_op
from torch import Tensor, nn

from nnunetv2_conemos.methods.unimos.scale_fusion import resized
from nnunetv2_conemos.networks.planned import UNet


class Pyramid(nn.Module):
    """A U-Net with the image as input at every scale, and logits at every scale.

    `widths` and `strides` are those of the stages, the first at full resolution. Both inputs of every concatenation of
    the encoder have passed through equally many convolutions, and so have all outputs: branches of coarser inputs and
    outputs have more residual blocks.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        widths: Sequence[int],
        strides: Sequence[Sequence[int]],
        convolution: Any,
    ):
        super().__init__()
        self.classes, self.convolution, self.strides = classes, convolution, [tuple(s) for s in strides]
        norm = get_matching_instancenorm(convolution)
        levels = len(widths)
        decoded = [widths[max(level - 1, 0)] for level in range(levels - 1)] + [widths[-1]]
        self.stem = nn.Sequential(
            convolution(channels, widths[0], 3, padding=1),
            norm(widths[0], affine=True),
            nn.ReLU(),
            convolution(widths[0], widths[0], 3, padding=1),
        )
        self.branches = nn.ModuleList(self._blocks(widths[:level]) for level in range(1, levels))
        self.down = nn.ModuleList(self._blocks((2 * a, b)) for a, b in pairwise(widths))
        self.up = nn.ModuleList(
            self._blocks((widths[level] + decoded[level + 1], decoded[level])) for level in range(levels - 1)
        )
        self.outputs = nn.ModuleList(self._blocks(decoded[level::-1]) for level in range(levels))
        self.heads = nn.ModuleList(
            nn.Sequential(norm(widths[0], affine=True), nn.ReLU(), convolution(widths[0], classes, 1)) for _ in widths
        )

    def _blocks(self, widths: Sequence[int]) -> nn.Sequential:
        return nn.Sequential(*(ResidualBlock(a, b, self.convolution) for a, b in pairwise(widths)))

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return features of each level, fine to coarse."""
        features, smaller = [self.stem(image)], image
        average, largest = (get_matching_pool_op(self.convolution, pool_type=kind) for kind in ("avg", "max"))
        for stride, branch, down in zip(self.strides[1:], self.branches, self.down, strict=True):
            smaller = average(stride, stride)(smaller)
            pooled = largest(stride, stride)(features[-1])
            features.append(down(torch.cat((pooled, branch(self.stem(smaller))), 1)))
        return features

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """Return logits of each level, fine to coarse."""
        decoded = [features[-1]]
        for skip, up in zip(features[-2::-1], reversed(self.up), strict=True):
            decoded.append(up(torch.cat((skip, resized(decoded[-1], skip)), 1)))
        return [head(output(x)) for x, output, head in zip(decoded[::-1], self.outputs, self.heads, strict=True)]


class ResidualBlock(nn.Module):
    """[instance norm - ReLU - convolution] twice, beside a shortcut: none, or a 1x1 convolution that changes width."""

    def __init__(self, inputs: int, outputs: int, convolution: Any):
        super().__init__()
        norm = get_matching_instancenorm(convolution)

        def layers(a: int, b: int, kernel: int) -> tuple[nn.Module, ...]:
            return norm(a, affine=True), nn.ReLU(), convolution(a, b, kernel, padding=kernel // 2)

        self.body = nn.Sequential(*layers(inputs, outputs, 3), *layers(outputs, outputs, 3))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Sequential(*layers(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class PlannedScales(nn.Module):
    """A planned U-Net whose deep-supervision logits, and logits of its bottleneck, are the scales."""

    def __init__(self, unet: UNet, classes: int):
        super().__init__()
        self.encoder, self.decoder, self.classes = unet.encoder, unet.decoder, classes
        self.convolution: Any = unet.encoder.conv_op
        self.decoder.deep_supervision = True
        self.bottleneck = self.convolution(unet.encoder.output_channels[-1], classes, 1)

    def encode(self, image: Tensor) -> list[Tensor]:
        return self.encoder(image)

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        return [*self.decoder(features), self.bottleneck(features[-1])]
