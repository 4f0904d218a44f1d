"""What travels through nnU-Net's training step in place of plain tensors.

Axis letters: **B** sample, **M** input channel, **R** regions, **Q** labels asked, ***S** space.
Labels asked are numbered 1..K as in the label map (label mode) or by position in `foreground_regions` plus one
(region mode); 0 pads a row and asks nothing. Modalities are numbered 1.. in the order of their names; 0 is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Query(NamedTuple):
    """An image and the labels asked of it.

    `image` [B,M,*S] float, `labels` [B,Q] integer, `modality` [B] integer (None = as at prediction).
    """

    image: Tensor
    labels: Tensor
    modality: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Query:
        return Query._make(moved(self, *args, **kwargs))


class Answer(NamedTuple):
    """The answer of a network that also says which modality it sees: `logits` [B,Q,*S], `modality` logits [B,N]."""

    logits: Tensor
    modality: Tensor


class Truth(NamedTuple):
    """What is known about the answers at one resolution.

    `target`: label map [B,1,*S] of integers, or region channels [B,R,*S] of booleans; `labels` [B,Q] asked; `known`
    [B,Q] boolean, annotated in that case; `valid` [B,1,*S] boolean, voxels outside nnU-Net's ignore label (None = all);
    `modality` [B] integer.
    """

    target: Tensor
    labels: Tensor
    known: Tensor
    valid: Tensor | None
    modality: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Truth:
        return Truth._make(moved(self, *args, **kwargs))

    def onehot(self) -> Tensor:
        """Boolean [B,Q,*S]: the map of each label asked (False where nothing is asked)."""
        space = (1,) * (self.target.ndim - 2)
        if self.target.dtype != torch.bool:
            return (self.target == self.labels.view(*self.labels.shape, *space)) & self._queried(space)
        channel = (self.labels - 1).clamp_min(0).view(*self.labels.shape, *space)
        return self.target.gather(1, channel.expand(-1, -1, *self.target.shape[2:])) & self._queried(space)

    def _queried(self, space: tuple[int, ...]) -> Tensor:
        return (self.labels > 0).view(*self.labels.shape, *space)


class QueriedLabels(NamedTuple):
    """What a batch asks: `labels` [B,Q] integer (0 = nothing), `known` [B,Q] boolean, `modality` [B] integer."""

    labels: Tensor
    known: Tensor
    modality: Tensor


def moved(record: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """`Tensor.to` of every field that is there."""
    return (None if field is None else field.to(*args, **kwargs) for field in record)


def to_truth(target: Tensor, queried: QueriedLabels, ignore: int | None) -> Truth:
    """Truth from nnU-Net's target of one resolution; the ignore label is a value (label mode) or the last channel."""
    valid = None
    if ignore is not None and target.dtype == torch.bool:
        target, valid = target[:, :-1], ~target[:, -1:]
    elif ignore is not None:
        valid = target != ignore
    return Truth(target, queried.labels, queried.known, valid, queried.modality)


def move(truth: list[Truth] | Truth, device: torch.device) -> list[Truth] | Truth:
    if isinstance(truth, Truth):
        return truth.to(device, non_blocking=True)
    return [t.to(device, non_blocking=True) for t in truth]
