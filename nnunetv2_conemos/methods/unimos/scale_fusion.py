"""Logits of several scales, fused with weights that depend on the image (PIPO-FAN: Fang & Yan, IEEE TMI 2020).

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** queried labels, **A** output labels,
**C** = K + 1 classes with background first, **L** scales, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.heads import chosen_channels, label_vs_rest
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query

DROPPED = 0.5  # share of channels that a perturbation drops


class Perturb(NamedTuple):
    """A request for plain and perturbed logits of an image [B,M,*S], from one pass of the encoder."""

    image: Tensor


class ScaleFusion(nn.Module):
    """Weighted sum of the scales; softmax weights from the average and maximum of an attention map of each scale."""

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


class FusedScalesUNet(PartialLabelNetwork):
    """Logits fused from the scales of a network that encodes images and decodes logits, fine to coarse.

    A `Perturb` gives the logits of all labels [B,K,*S] twice: plain, and with half of the channels dropped, those of
    the logits of each scale or, with `perturb_features`, those of the features from encoder to decoder. `prior` is
    subtracted from all logits, which the loss that it comes from adds again.
    """

    def __init__(self, spec: NetworkSpec, network: Any, perturb_features: bool = False, prior: float = 0.0):
        super().__init__(spec)
        self.decoder, self.perturb_features, self.prior = network, perturb_features, prior
        self.decoder.deep_supervision = False  # nnU-Net's switch; only the fused logits are supervised
        self.fusion = ScaleFusion(network.classes, network.convolution)

    def queried_logits(self, query: Query) -> Float[Tensor, "B Q *S"]:
        return chosen_channels(self._all_labels(query.image), query.labels)

    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        return label_vs_rest(self._all_labels(image), self.output_labels)

    def training_request(self, request: Perturb) -> tuple[Float[Tensor, "B K *S"], Float[Tensor, "B K *S"]]:
        return self._perturbed(request.image)

    def _all_labels(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B K *S"]:
        return self._fused(full_size(self.decoder.decode(self.decoder.encode(image)), image))

    def _fused(self, scales: list[Tensor]) -> Float[Tensor, "B K *S"]:
        logits = self.fusion(scales)
        return logits[:, 1:] - logits[:, :1] - self.prior

    def _perturbed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.decoder.encode(image)
        scales = full_size(self.decoder.decode(features), image)
        if self.perturb_features:
            other = full_size(self.decoder.decode([drop_channels(x) for x in features]), image)
        else:
            other = [drop_channels(logits) for logits in scales]
        return self._fused(scales), self._fused(other)


def full_size(scales: Sequence[Tensor], image: Tensor) -> list[Tensor]:
    """Interpolate the logits of every scale linearly to the resolution of the image."""
    return [z if z.shape[2:] == image.shape[2:] else resized(z, image) for z in scales]


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate linearly to the resolution of another map, in single precision."""
    mode = {2: "bilinear", 3: "trilinear"}[x.ndim - 2]
    return F.interpolate(x.float(), like.shape[2:], mode=mode, align_corners=True).to(x.dtype)


def drop_channels(x: Tensor) -> Tensor:
    """Set half of the channels to 0 and double the others, at random for each sample."""
    kept = torch.rand(x.shape[:2], device=x.device) >= DROPPED
    return x * (kept / (1 - DROPPED)).to(x.dtype).view(*x.shape[:2], *(1,) * (x.ndim - 2))
