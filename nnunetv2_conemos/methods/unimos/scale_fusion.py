"""Logits of several scales become one answer, weighted by what each scale shows (PIPO-FAN: Fang & Yan, IEEE TMI 2020).

Axis letters: **B** sample, **M** input channel, **K** labels, **C** = K + 1 classes with background first,
**L** scales, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.networks.heads import chosen_channels, label_vs_rest, nnunet_heads
from nnunetv2_conemos.records import Query

DROPPED = 0.5  # share of channels that a perturbation drops


class Perturb(NamedTuple):
    """A request for the plain and the perturbed answer to an image [B,M,*S], from one pass of the encoder."""

    image: Tensor


class ScaleFusion(nn.Module):
    """A number for each scale, from the average and the maximum of a map of its logits; softmax over scales."""

    def __init__(self, classes: int, convolution: Any):
        super().__init__()
        norm = get_matching_instancenorm(convolution)
        self.attention = nn.Sequential(
            norm(classes, affine=True),
            nn.ReLU(),
            convolution(classes, 1, 1),
            norm(1, affine=True),
            nn.ReLU(),
            convolution(1, 1, 3, padding=1),
        )

    def forward(self, scales: Sequence[Float[Tensor, "B C *S"]]) -> Float[Tensor, "B C *S"]:
        weights = self.weights(scales).unbind(1)
        fused = torch.zeros_like(scales[0])
        for weight, logits in zip(weights, scales, strict=True):  # stacked, they would be in memory twice
            fused = fused + logits * weight.to(logits.dtype).view(-1, *(1,) * (logits.ndim - 1))
        return fused

    def weights(self, scales: Sequence[Float[Tensor, "B C *S"]]) -> Float[Tensor, "B L"]:
        maps = [self.attention(logits).flatten(1) for logits in scales]
        return torch.softmax(torch.stack([m.mean(1) + m.amax(1) for m in maps], dim=1), dim=1)


class FusedScalesUNet(nn.Module):
    """One answer from the scales of a network that encodes images and decodes logits, fine to coarse.

    `forward(Query)` answers the labels asked [B,Q,*S] against background, `forward(Tensor)` nnU-Net's heads, and
    `forward(Perturb)` all labels [B,K,*S] twice: plain, and with half of the channels dropped, those of the logits of
    each scale or, with `perturb_features`, those of what the encoder hands to the decoder.
    """

    decoder: Any

    def __init__(self, network: Any, output_labels: Sequence[int], perturb_features: bool = False):
        super().__init__()
        self.decoder, self.output_labels, self.perturb_features = network, tuple(output_labels), perturb_features
        self.decoder.deep_supervision = False  # what nnU-Net switches; there is one answer only
        self.fusion = ScaleFusion(network.classes, network.convolution)

    def forward(self, query: Query | Perturb | Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if isinstance(query, Query):
            return chosen_channels(self._answer(query.image, self.decoder.encode(query.image)), query.labels)
        if isinstance(query, Perturb):
            return self._perturbed(query.image)
        logits = self._answer(query, self.decoder.encode(query))
        return nnunet_heads(label_vs_rest(logits, self.output_labels), self.output_labels, logits.shape[1], True)

    def _answer(self, image: Tensor, features: list[Tensor]) -> Float[Tensor, "B K *S"]:
        return self._fused(full_size(self.decoder.decode(features), image))

    def _fused(self, scales: list[Tensor]) -> Float[Tensor, "B K *S"]:
        logits = self.fusion(scales)
        return logits[:, 1:] - logits[:, :1]

    def _perturbed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.decoder.encode(image)
        scales = full_size(self.decoder.decode(features), image)
        if self.perturb_features:
            other = full_size(self.decoder.decode([drop_channels(x) for x in features]), image)
        else:
            other = [drop_channels(logits) for logits in scales]
        return self._fused(scales), self._fused(other)


def full_size(scales: Sequence[Tensor], image: Tensor) -> list[Tensor]:
    """Logits of every scale at the resolution of the image, linearly interpolated."""
    return [z if z.shape[2:] == image.shape[2:] else resized(z, image) for z in scales]


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Linearly interpolated to the resolution of another map, in single precision."""
    mode = {2: "bilinear", 3: "trilinear"}[x.ndim - 2]
    return F.interpolate(x.float(), like.shape[2:], mode=mode, align_corners=True).to(x.dtype)


def drop_channels(x: Tensor) -> Tensor:
    """Half of the channels 0, the others doubled, drawn for each sample."""
    kept = torch.rand(x.shape[:2], device=x.device) >= DROPPED
    return x * (kept / (1 - DROPPED)).to(x.dtype).view(*x.shape[:2], *(1,) * (x.ndim - 2))
