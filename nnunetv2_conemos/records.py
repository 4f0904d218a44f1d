"""Records that pass through nnU-Net's training step in place of plain tensors.

Axis letters: **B** sample, **M** input channel, **R** regions, **Q** queried labels, ***S** space.
Labels are numbered 1..K as in the label map (label mode) or by position in `foreground_regions` plus one (region mode);
0 is the padding of a row. Modalities are numbered 1.. in the order of their names; 0 is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Query(NamedTuple):
    """An image and the labels that are queried in it.

    `image` [B,M,*S] float, `labels` [B,Q] integer, `modality` [B] integer (None = as at prediction).
    """

    image: Tensor
    labels: Tensor
    modality: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Query:
        return Query._make(fields_to(self, *args, **kwargs))


class OutputLabels(NamedTuple):
    """A request, at prediction, for the logits [B,A,*S] of the output labels alone, in their order.

    `image` [B,M,*S] float. An image by itself gives nnU-Net's heads of all labels.
    """

    image: Tensor


class Truth(NamedTuple):
    """Ground truth of the queried labels at one resolution.

    `target`: label map [B,1,*S] of integers, or region channels [B,R,*S] of booleans; `labels` [B,Q], those queried;
    `known` [B,Q] boolean, annotated in that case; `valid` [B,1,*S] boolean, voxels outside nnU-Net's ignore label
    (None = all); `modality` [B] integer.
    """

    target: Tensor
    labels: Tensor
    known: Tensor
    valid: Tensor | None
    modality: Tensor | None = None

    def to(self, *args: Any, **kwargs: Any) -> Truth:
        return Truth._make(fields_to(self, *args, **kwargs))

    def onehot(self) -> Tensor:
        """Return the mask of each queried label, boolean [B,Q,*S]; False in the channels of padding."""
        space = (1,) * (self.target.ndim - 2)
        if self.target.dtype != torch.bool:
            return (self.target == self.labels.view(*self.labels.shape, *space)) & self._queried(space)
        channel = (self.labels - 1).clamp_min(0).view(*self.labels.shape, *space)
        return self.target.gather(1, channel.expand(-1, -1, *self.target.shape[2:])) & self._queried(space)

    def _queried(self, space: tuple[int, ...]) -> Tensor:
        return (self.labels > 0).view(*self.labels.shape, *space)


class QueriedLabels(NamedTuple):
    """Queries of a batch: `labels` [B,Q] integer (0 = padding), `known` [B,Q] boolean, `modality` [B] integer."""

    labels: Tensor
    known: Tensor
    modality: Tensor


def fields_to(record: Iterable[Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Apply `Tensor.to` to every field that is not None."""
    return (None if field is None else field.to(*args, **kwargs) for field in record)


def to_truth(target: Tensor, queried: QueriedLabels, ignore: int | None) -> Truth:
    """Convert nnU-Net's target at one resolution; the ignore label is a value (label mode) or the last channel."""
    valid = None
    if ignore is not None and target.dtype == torch.bool:
        target, valid = target[:, :-1], ~target[:, -1:]
    elif ignore is not None:
        valid = target != ignore
    return Truth(target, queried.labels, queried.known, valid, queried.modality)


def move(truth: list[Truth] | Truth, device: torch.device) -> list[Truth] | Truth:
    """Copy the ground truth, at one resolution or at several, to a device."""
    if isinstance(truth, Truth):
        return truth.to(device, non_blocking=True)
    return [t.to(device, non_blocking=True) for t in truth]
