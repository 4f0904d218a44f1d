"""A V-Net-like encoder and decoder with added skips, conditioned on a time if given (A&D: Wang & Li, NeurIPS 2023).

The published network in any dimension, with the widths, kernels and strides of the plans.
Axis letters: **B** sample, **F** features, **T** time features, **C** classes, ***S** space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from dynamic_network_architectures.building_blocks.helper import (
    convert_conv_op_to_dim,
    get_matching_batchnorm,
    get_matching_convtransp,
    get_matching_dropout,
    get_matching_instancenorm,
)
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnunetv2_conemos.networks.norms import group_norm

Norm = Literal["batch", "group", "instance"]
SINUSOID, TIME = 128, 512  # features of a time before and after its layers
PERIOD = 1e4  # longest period of the sinusoids, in steps
UNITS = (1, 2, 3)  # convolutions of the levels, fine to coarse; coarser ones have as many as the last
DROPPED, STRONGLY_DROPPED = 0.1, 0.5  # of channels: after each convolution; of the coarsest features and before logits


@dataclass(frozen=True)
class Shape:
    """Shape of a network in the plans: features, kernels and strides of each level, fine to coarse.

    After an instance norm, the last layer before the logits, every image has the same mean logits; so networks with
    them are not trained any more, only those that exist predict.
    """

    convolution: Any
    features: Sequence[int]
    kernels: Sequence[Sequence[int]]
    strides: Sequence[Sequence[int]]
    norm: Norm = "batch"

    def unit(self, inputs: int, level: int, timed: bool) -> Unit:
        """Build a convolution to the features of a level."""
        kernel = tuple(self.kernels[level])
        same = tuple(size // 2 for size in kernel)
        return self._unit(self.convolution(inputs, self.features[level], kernel, padding=same), level, timed, DROPPED)

    def down(self, level: int, timed: bool) -> Unit:
        """Build the step from the level above to this one."""
        stride = tuple(self.strides[level])
        return self._unit(
            self.convolution(self.features[level - 1], self.features[level], stride, stride), level, timed
        )

    def up(self, level: int, timed: bool) -> Unit:
        """Build the step from the level below to this one."""
        stride = tuple(self.strides[level + 1])
        transposed: Any = get_matching_convtransp(self.convolution)
        return self._unit(transposed(self.features[level + 1], self.features[level], stride, stride), level, timed)

    def block(self, level: int, timed: bool) -> Block:
        """Build the convolutions of one level; the last is not conditioned on the time."""
        number, width = UNITS[min(level, len(UNITS) - 1)], self.features[level]
        return Block(self.unit(width, level, timed and last > 0) for last in reversed(range(number)))

    def dropout(self, share: float) -> nn.Module:
        """Build a layer that drops a share of the channels."""
        return get_matching_dropout(dimension=convert_conv_op_to_dim(self.convolution))(share)

    def _unit(self, operation: nn.Module, level: int, timed: bool, dropped: float = 0.0) -> Unit:
        width = self.features[level]
        after = nn.Sequential(nn.ReLU(), self._norm(width), self.dropout(dropped))
        return Unit(operation, after, nn.Sequential(nn.SiLU(), nn.Linear(TIME, width)) if timed else None)

    def _norm(self, width: int) -> nn.Module:
        if self.norm == "group":
            return group_norm(width)
        made = {"instance": get_matching_instancenorm, "batch": get_matching_batchnorm}[self.norm](self.convolution)
        return made(width, affine=True)


class Unit(nn.Module):
    """Convolution, ReLU, norm, dropout; then the time is added to every voxel, where there is one."""

    def __init__(self, operation: nn.Module, after: nn.Module, time: nn.Module | None):
        super().__init__()
        self.operation, self.after, self.time = operation, after, time

    def forward(self, x: Float[Tensor, "B F *S"], time: Float[Tensor, "B T"] | None = None) -> Tensor:
        x = self.after(self.operation(x))
        if self.time is None or time is None:
            return x
        shift = self.time(time)
        return x + shift.view(*shift.shape, *(1,) * (x.ndim - 2))


class Block(nn.ModuleList):
    """A sequence of units."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        for unit in self:
            x = unit(x, time)
        return x


class Encoder(nn.Module):
    """An encoder from the features of a stem, at full resolution, to features of every level, fine to coarse."""

    def __init__(self, shape: Shape):
        super().__init__()
        levels = range(1, len(shape.features))
        self.down = nn.ModuleList(shape.down(level, timed=True) for level in levels)
        self.blocks = nn.ModuleList(shape.block(level, timed=True) for level in levels)
        self.dropout = shape.dropout(STRONGLY_DROPPED)

    def forward(self, x: Tensor, time: Tensor | None = None) -> list[Tensor]:
        features = [x]
        for down, block in zip(self.down, self.blocks, strict=True):
            features.append(block(down(features[-1], time), time))
        return [*features[:-1], self.dropout(features[-1])]


class Decoder(nn.Module):
    """A decoder from features of every level to logits of `classes`."""

    deep_supervision = False  # nnU-Net's switch; there are logits of one resolution only

    def __init__(self, shape: Shape, classes: int, timed: bool = False):
        super().__init__()
        levels = list(reversed(range(len(shape.features) - 1)))
        self.up = nn.ModuleList(shape.up(level, timed) for level in levels)
        self.blocks = nn.ModuleList(shape.block(level, timed) for level in levels)
        self.dropout = shape.dropout(STRONGLY_DROPPED)
        self.head = shape.convolution(shape.features[0], classes, 1)

    def forward(self, features: Sequence[Tensor], time: Tensor | None = None) -> Float[Tensor, "B C *S"]:
        x = features[-1]
        for up, block, skip in zip(self.up, self.blocks, features[-2::-1], strict=True):
            x = block(up(x, time) + skip, time)
        return self.head(self.dropout(x))


class TimeEmbedding(nn.Module):
    """Sines and cosines of a step of the diffusion, and two layers on them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SINUSOID, TIME), nn.SiLU(), nn.Linear(TIME, TIME))

    def forward(self, step: Int[Tensor, " B"]) -> Float[Tensor, "B T"]:
        half = SINUSOID // 2
        rates = torch.exp(-math.log(PERIOD) / (half - 1) * torch.arange(half, device=step.device))
        angles = step[:, None] * rates
        return self.layers(torch.cat((angles.sin(), angles.cos()), 1))
