"""What travels through nnU-Net's training step in place of plain tensors.

Axis letters: **B** sample, **M** input channel, **R** regions, **Q** labels asked, ***S** space.
Labels asked are numbered 1..K as in the label map (label mode) or by position in `foreground_regions` plus one
(region mode); 0 pads a row and asks nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Query(NamedTuple):
    """An image and the labels asked of it. `image` [B,M,*S] float, `labels` [B,Q] integer."""

    image: Tensor
    labels: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Query:
        return Query(self.image.to(*args, **kwargs), self.labels.to(*args, **kwargs))


class Truth(NamedTuple):
    """What is known about the answers at one resolution.

    `target`: label map [B,1,*S] of integers, or region channels [B,R,*S] of booleans; `labels` [B,Q] asked; `known`
    [B,Q] boolean, annotated in that case; `valid` [B,1,*S] boolean, voxels outside nnU-Net's ignore label (None = all).
    """

    target: Tensor
    labels: Tensor
    known: Tensor
    valid: Tensor | None

    def to(self, *args: Any, **kwargs: Any) -> Truth:
        target, labels, known = (field.to(*args, **kwargs) for field in self[:3])
        return Truth(target, labels, known, None if self.valid is None else self.valid.to(*args, **kwargs))

    def onehot(self) -> Tensor:
        """Boolean [B,Q,*S]: the map of each label asked (False where nothing is asked)."""
        space = (1,) * (self.target.ndim - 2)
        if self.target.dtype != torch.bool:
            return (self.target == self.labels.view(*self.labels.shape, *space)) & self._asked(space)
        channel = (self.labels - 1).clamp_min(0).view(*self.labels.shape, *space)
        return self.target.gather(1, channel.expand(-1, -1, *self.target.shape[2:])) & self._asked(space)

    def _asked(self, space: tuple[int, ...]) -> Tensor:
        return (self.labels > 0).view(*self.labels.shape, *space)


def pose_truth(target: Tensor, labels: Tensor, known: Tensor, ignore: int | None) -> Truth:
    """Truth from nnU-Net's target of one resolution; the ignore label is a value (label mode) or the last channel."""
    if ignore is None:
        return Truth(target, labels, known, None)
    if target.dtype == torch.bool:
        return Truth(target[:, :-1], labels, known, ~target[:, -1:])
    return Truth(target, labels, known, target != ignore)
