"""Class activation maps of a truncated U-Net, one network per input channel (WSS-CMER: Patel & Dolz, MedIA 2022).

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** queried labels, **A** output labels, **H**, **W**
sides of a slice.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.heads import chosen_channels
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query

WIDTH = 64  # of the first features, before it is divided
SOFTNESS = 0.1  # distance of the activation to its threshold that is a logit of 1
Fusion = Literal["mean", "max"] | int


class TwoViews(NamedTuple):
    """Two views of a slice, [B,M,H,W] each; their sizes may differ."""

    first: Tensor
    second: Tensor


class Activation(NamedTuple):
    """Outputs of the network of each channel: logits [B,M,K,2] of (absent, present), normalised maps [B,M,K,H,W]."""

    logits: Tensor
    maps: Tensor

    @property
    def found(self) -> Tensor:
        """Boolean [B,M,K]: classified as present."""
        return self.logits[..., 1] > self.logits[..., 0]


def standardised(image: Float[Tensor, "B M H W"]) -> Float[Tensor, "B M H W"]:
    """Standardise each slice of each channel to mean 0 and standard deviation 1; a constant one becomes 0."""
    image = image.float()
    axes = (-2, -1)
    return (image - image.mean(axes, keepdim=True)) / (image.std(axes, keepdim=True) + 1e-12)


def max_norm(cam: Float[Tensor, "*N H W"]) -> Float[Tensor, "*N H W"]:
    """Scale the positive part of each map to [0, 1]; in full precision, because half precision would divide 0 by 0."""
    positive = cam.float().relu()
    lowest, highest = positive.amin((-2, -1), keepdim=True), positive.amax((-2, -1), keepdim=True)
    return (positive - lowest - 1e-8).relu() / (highest - lowest + 1e-8)


class DoubleConv(nn.Sequential):
    """Two blocks of `conv_norm_relu`."""

    def __init__(self, channels: int, features: int):
        super().__init__(*conv_norm_relu(channels, features), *conv_norm_relu(features, features))


def conv_norm_relu(channels: int, features: int) -> tuple[nn.Module, ...]:
    """Build a 3x3 convolution, a batch norm and a ReLU."""
    return nn.Conv2d(channels, features, 3, padding=1), nn.BatchNorm2d(features), nn.ReLU(inplace=True)


class CAMUNet(nn.Module):
    """A U-Net of three poolings that ends in a 1x1 convolution without bias, whose outputs are the activation maps.

    Maps have full resolution; their mean over a slice is the logit of each class.
    """

    def __init__(self, maps: int, width: int = WIDTH, dropout: bool = False):
        super().__init__()
        w = width
        self.encoder = nn.ModuleList(DoubleConv(a, b) for a, b in ((1, w), (w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w)))
        self.decoder = nn.ModuleList(DoubleConv(a, b) for a, b in ((8 * w, 2 * w), (4 * w, w), (2 * w, w)))
        self.backbone = nn.Sequential(*conv_norm_relu(w, w), *([nn.Dropout2d(0.5)] if dropout else []))
        self.classifier = nn.Conv2d(w, maps, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)

    def forward(self, image: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B C H W"]:
        features, *deeper = self.encoder
        skips = [features(image)]
        for block in deeper:
            skips.append(block(F.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for block in self.decoder:
            skip = skips.pop()
            x = block(torch.cat((skip, doubled(x, skip)), 1))
        return self.classifier(self.backbone(x))


def doubled(x: Tensor, skip: Tensor) -> Tensor:
    """Double the sides, and pad with zeros where the skip is one pixel larger, because its sides are odd."""
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.pad(x, (0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]))


class CAMNetworks(PartialLabelNetwork):
    """A `CAMUNet` for each input channel, with a pair of maps (absent, present) for each label.

    `TwoViews` gives the `Activation` of both views, in separate passes of the batch norms. The logits of a label are
    the distance of the fused activation to the threshold of the label, a buffer. `fusion` takes the mean or the maximum
    over the channels, or one channel.
    """

    threshold: Tensor

    def __init__(self, spec: NetworkSpec, width: int = WIDTH, dropout: bool = False, fusion: Fusion = "mean"):
        super().__init__(spec)
        outputs = 2 * self.num_labels
        self.networks = nn.ModuleList(CAMUNet(outputs, width, dropout) for _ in range(spec.num_input_channels))
        self.decoder = SimpleNamespace(deep_supervision=False)  # nnU-Net's switch; there is one scale
        self.fusion: Fusion = fusion
        self.register_buffer("threshold", torch.full((self.num_labels,), 0.5))

    def queried_logits(self, query: Query) -> Float[Tensor, "B Q H W"]:
        return chosen_channels(self._all_labels(query.image), query.labels)

    def output_logits(self, image: Float[Tensor, "B M H W"]) -> Float[Tensor, "B A H W"]:
        return self.output_channels(self._all_labels(image))

    def training_request(self, request: TwoViews) -> tuple[Activation, Activation]:
        return self.activation(request.first), self.activation(request.second)

    def activation(self, image: Float[Tensor, "B M H W"]) -> Activation:
        """Classify slices, and compute the activation maps, with the network of each channel."""
        slices = standardised(image).split(1, 1)
        maps = [network(x).unflatten(1, (-1, 2)) for network, x in zip(self.networks, slices, strict=True)]
        cam = torch.stack(maps, 1).float()  # [B,M,K,2,H,W]
        return Activation(cam.mean((-2, -1)), max_norm(cam[:, :, :, 1]))

    def fused(self, image: Float[Tensor, "B M H W"]) -> Float[Tensor, "B K H W"]:
        """Fuse the activation of each label, in [0, 1]; a channel that classifies it as absent contributes 0."""
        activation = self.activation(image)
        maps = activation.maps * activation.found[..., None, None]
        if isinstance(self.fusion, int):
            return maps[:, self.fusion]
        return maps.mean(1) if self.fusion == "mean" else maps.amax(1)

    def _all_labels(self, image: Float[Tensor, "B M H W"]) -> Float[Tensor, "B K H W"]:
        return (self.fused(image) - self.threshold[:, None, None]) / SOFTNESS
