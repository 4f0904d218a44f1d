"""Losses that learn maps from image tags: equivariance within and across channels (Patel & Dolz, MedIA 2022).

Each term is a vector with one loss per channel, [M]; losses count known tags only. Computed in full precision.
Axis letters: **B** sample, **M** input channel, **K** labels, **H**, **W** sides of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Reduction = Literal["mean", "sum"]
EPS = 1e-12


class Tags(NamedTuple):
    """Tags of slices: whether a label is `present`, and whether that is `known`; boolean [B,K] each."""

    present: Tensor
    known: Tensor

    def to(self, device: torch.device) -> Tags:
        return Tags(self.present.to(device, non_blocking=True), self.known.to(device, non_blocking=True))


class Seen(NamedTuple):
    """Outputs of the network of each channel for both views.

    `first`, `second`: logits [B,M,K,2] of (absent, present). `warped`: normalised maps of the first view, transformed
    as the second view was; `maps`: those of the second view; [B,M,K,H,W] in [0, 1].
    """

    first: Tensor
    second: Tensor
    warped: Tensor
    maps: Tensor


def known_mean(values: Float[Tensor, "B K"], known: Bool[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Average over the known pairs of slice and label; 0 where there are none."""
    return torch.where(known, values, 0).sum() / known.sum().clamp_min(1)


def per_channel(loss: Callable[[int], Tensor], channels: int) -> Float[Tensor, " M"]:
    """Stack `loss(channel)` over the channels."""
    return torch.stack([loss(channel) for channel in range(channels)])


def classification(seen: Seen, tags: Tags) -> Float[Tensor, " M"]:
    """Return the cross-entropy of the tags, averaged over both views."""
    target = tags.present.long()

    def of(logits: Tensor) -> Tensor:
        return known_mean(F.cross_entropy(logits.movedim(-1, 1), target, reduction="none"), tags.known)

    return per_channel(lambda i: (of(seen.first[:, i]) + of(seen.second[:, i])) / 2, seen.first.shape[1])


def equivariance(seen: Seen, tags: Tags) -> Float[Tensor, " M"]:
    """Return the mean square difference of the transformed map of a slice and the map of the transformed slice.

    Slices without the label contribute 0 to the mean. The gradient reaches both views.
    """

    def of(channel: int) -> Tensor:
        difference = (seen.warped[:, channel] - seen.maps[:, channel]).square().mean((-2, -1))
        return known_mean(difference * tags.present, tags.known)

    return per_channel(of, seen.first.shape[1])


def unit(maps: Float[Tensor, "B K H W"]) -> Float[Tensor, "B K H W"]:
    """Divide each map by its Euclidean norm."""
    return maps / torch.linalg.vector_norm(maps + EPS, dim=(-2, -1), keepdim=True)


def distance(a: Tensor, b: Tensor, counted: Bool[Tensor, "B K"], tags: Tags, reduction: Reduction) -> Tensor:
    """Compare unit maps [B,K,H,W] where `counted`: squared difference, as mean over pixels or sum, 2 - 2 cos(a, b)."""
    difference = (unit(a) - unit(b)).square()
    return known_mean(getattr(difference, reduction)((-2, -1)) * counted, tags.known)


def partners(channel: int, channels: int) -> Iterator[int]:
    """Iterate over the other channels."""
    return (other for other in range(channels) if other != channel)


def over_partners(loss: Callable[[int, int], Tensor], seen: Seen) -> Float[Tensor, " M"]:
    """Average loss(channel, other) over the other channels; 0 where there is none."""
    channels = seen.first.shape[1]
    if channels == 1:
        return seen.first.new_zeros(1)
    return per_channel(
        lambda i: torch.stack([loss(i, j) for j in partners(i, channels)]).sum() / (channels - 1), channels
    )


def cross_modality(seen: Seen, tags: Tags, reduction: Reduction = "mean") -> Float[Tensor, " M"]:
    """Return the distance of a channel's map in one view to the maps of all other channels (teachers) in the other.

    Counted where the label is present and the teacher classifies it so too; no gradient reaches the teacher.
    """
    present = tags.present & tags.known
    by_first, by_second = (present[:, None] & (z[..., 1] > z[..., 0]) for z in (seen.first, seen.second))  # [B,M,K]
    warped, maps = seen.warped.detach(), seen.maps.detach()

    def of(i: int, j: int) -> Tensor:
        forth = distance(seen.warped[:, i], maps[:, j], by_second[:, j], tags, reduction)
        return (forth + distance(seen.maps[:, i], warped[:, j], by_first[:, j], tags, reduction)) / 2

    return over_partners(of, seen)


def exchange(seen: Seen, tags: Tags, temperature: float = 10.0) -> Float[Tensor, " M"]:
    """Return the softened KL divergence of a channel's classification from those of all other channels (teachers)."""

    def divergence(logits: Tensor, i: int, j: int) -> Tensor:
        mine = F.log_softmax(logits[:, i] / temperature, -1)
        teacher = F.softmax(logits[:, j].detach() / temperature, -1)
        return known_mean(F.kl_div(mine, teacher, reduction="none").sum(-1), tags.known) * temperature**2

    return over_partners(lambda i, j: (divergence(seen.first, i, j) + divergence(seen.second, i, j)) / 2, seen)


class TagLoss(nn.Module):
    """The weighted sum of all terms and channels; disjoint networks get the gradients that each would get alone."""

    def __init__(
        self,
        exchange_weight: float = 0.5,
        equivariance_weight: float = 1.0,
        cross_modality_weight: float = 1.0,
        reduction: Reduction = "mean",
        temperature: float = 10.0,
    ):
        super().__init__()
        self.exchange_weight, self.equivariance_weight = exchange_weight, equivariance_weight
        self.cross_modality_weight, self.temperature = cross_modality_weight, temperature
        self.reduction: Reduction = reduction

    def forward(self, seen: Seen, tags: Tags) -> Float[Tensor, ""]:
        loss = classification(seen, tags) + self.exchange_weight * exchange(seen, tags, self.temperature)
        loss = loss + self.equivariance_weight * equivariance(seen, tags)
        return (loss + self.cross_modality_weight * cross_modality(seen, tags, self.reduction)).sum()
