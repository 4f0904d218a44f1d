"""Random transforms of a batch of slices, the same for images and for maps, on their device.

Axis letters: **B** sample, **C** channel (any number of axes), **H**, **W** sides of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Family = Literal["flip", "rotation", "translation", "scaling"]
FAMILIES: tuple[Family, ...] = ("flip", "rotation", "translation", "scaling")
MAX_SHIFT = 0.3  # of each side
SCALES = (0.8, 1.2)  # of the sides, which become multiples of STEP
STEP = 8
Warp = Callable[[Tensor], Tensor]  # [B,C,H,W] -> [B,C,H',W']


@dataclass(frozen=True)
class Flip:
    """Flip along one axis."""

    axis: int  # -2 or -1

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(self.axis)


@dataclass(frozen=True)
class Rotation:
    """Exact rotation by a multiple of 90 degrees per sample."""

    times: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([torch.rot90(one, times, (-2, -1)) for one, times in zip(x, self.times, strict=True)])


@dataclass(frozen=True)
class Translation:
    """Bilinear translation per sample by (down, right) in shares of the sides, filled with zeros as nnU-Net pads."""

    shifts: Tensor  # [B,2]

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1, *x.shape[-2:])
        move = torch.eye(2, 3).repeat(len(x), 1, 1)
        move[:, :, 2] = -2 * self.shifts.flip(-1)  # sampled where the content comes from, in half sides, (x, y)
        grid = F.affine_grid(move.to(flat), list(flat.shape), align_corners=False)
        return F.grid_sample(flat, grid, align_corners=False).reshape(x.shape)


@dataclass(frozen=True)
class Scaling:
    """Bilinear scaling to another size."""

    size: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1, *x.shape[-2:])
        return F.interpolate(flat, self.size, mode="bilinear", align_corners=True).reshape(*x.shape[:-2], *self.size)


def jittered(x: Tensor, largest: float) -> Tensor:
    """Shift each sample of a batch [B,C,H,W] by whole pixels, up to a share of the sides."""
    size = torch.tensor(x.shape[-2:])
    shifts = (2 * torch.rand(len(x), 2) - 1) * largest
    return Translation((shifts * size).round() / size)(x)


def drawn(families: Sequence[Family], samples: int, size: Sequence[int]) -> Warp:
    """Sample a family uniformly, and a transform for the batch; slices that are not square only turn by 180 degrees."""
    family = families[int(torch.randint(len(families), ()))]
    if family == "flip":
        return Flip(-1 - int(torch.randint(2, ())))
    if family == "rotation":
        square = size[0] == size[1]
        return Rotation(tuple(torch.randint(1, 4, (samples,)).tolist()) if square else (2,) * samples)
    if family == "translation":
        return Translation((2 * torch.rand(samples, 2) - 1) * MAX_SHIFT)
    factor = torch.empty(()).uniform_(*SCALES).item()
    height, width = (max(STEP, STEP * round(factor * side / STEP)) for side in size)
    return Scaling((height, width))
