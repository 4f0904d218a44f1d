"""The published backbone of Hermes-R, in the parts that a planned U-Net has (Gao et al., CVPR 2024).

Axis letters: **B** sample, **F** features, **D H W** space; 3D only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.errors import UnsupportedError

WIDTHS = (32, 64, 128, 256, 320)
STRIDE = 2 ** (len(WIDTHS) - 1)  # of the bottleneck


class ResidualBlock(nn.Module):
    """[instance norm - ReLU - convolution] twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.body = nn.Sequential(*convolution(inputs, outputs), *convolution(outputs, outputs))
        self.shortcut = nn.Sequential(*(convolution(inputs, outputs) if inputs != outputs else ()))

    def forward(self, x: Float[Tensor, "B F D H W"]) -> Float[Tensor, "B F2 D H W"]:
        return self.body(x) + self.shortcut(x)


class Upsample(nn.Module):
    """Trilinear upsampling by 2, in single precision."""

    def forward(self, x: Float[Tensor, "B F D H W"]) -> Float[Tensor, "B F D2 H2 W2"]:
        return F.interpolate(x.float(), scale_factor=2, mode="trilinear", align_corners=True).to(x.dtype)


class Encoder(nn.Module):
    """Stages of two blocks after max pooling, with the `strides` and `output_channels` of a planned encoder."""

    def __init__(self, channels: int):
        super().__init__()
        first = nn.Sequential(plain_convolution(channels, WIDTHS[0]), ResidualBlock(WIDTHS[0], WIDTHS[0]))
        rest = [nn.Sequential(nn.MaxPool3d(2), *two_blocks(a, b)) for a, b in pairwise(WIDTHS)]
        self.stages = nn.Sequential(first, *rest)
        self.output_channels = list(WIDTHS)
        self.strides = [[1] * 3, *([2] * 3 for _ in rest)]


class Decoder(nn.Module):
    """Stages of two blocks after upsampling and concatenation."""

    def __init__(self) -> None:
        super().__init__()
        coarse_to_fine = list(pairwise(WIDTHS[::-1]))
        self.transpconvs = nn.ModuleList(Upsample() for _ in coarse_to_fine)
        self.stages = nn.ModuleList(nn.Sequential(*two_blocks(low + skip, skip)) for low, skip in coarse_to_fine)
        self.seg_layers = nn.ModuleList(nn.Identity() for _ in coarse_to_fine)
        self.deep_supervision = False


class PublishedUNet(nn.Module):
    """Encoder and decoder, with the stages of a planned U-Net."""

    def __init__(self, channels: int):
        super().__init__()
        self.encoder, self.decoder = Encoder(channels), Decoder()


def published_unet(patch_size: Sequence[int], channels: int) -> PublishedUNet:
    """Build the network; raises NotImplementedError for patches that its fixed strides do not divide."""
    if len(patch_size) != 3 or any(size % STRIDE for size in patch_size):
        raise UnsupportedError(
            f"backbone 'hermes_r' takes 3D patches whose sides are multiples of {STRIDE}; this configuration has "
            f"{list(patch_size)}. Change `patch_size`, or leave `backbone` out."
        )
    return PublishedUNet(channels)


def plain_convolution(inputs: int, outputs: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, 3, padding=1, bias=False)


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.InstanceNorm3d(inputs, eps=1e-4), nn.ReLU(), plain_convolution(inputs, outputs)


def two_blocks(inputs: int, outputs: int) -> tuple[ResidualBlock, ResidualBlock]:
    return ResidualBlock(inputs, outputs), ResidualBlock(outputs, outputs)
