"""A planned U-Net whose last layers are generated from image and label (DoDNet: Zhang et al., CVPR 2021).

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** labels asked, **F** features, **P** generated
weights, **V** voxels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.heads import nnunet_heads
from nnunetv2_conemos.networks.planned import UNet, planned_unet
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import has_background_head, output_labels_of
from nnunetv2_conemos.training.sampling import Pairs
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

WIDTH = 8  # channels of the dynamic head
SIZES = (WIDTH * WIDTH, WIDTH, WIDTH * WIDTH, WIDTH, WIDTH, 1)  # weights and biases of three 1x1 convolutions: 153
LABELS_AT_ONCE = 4  # at prediction; bounds the memory of the heads whatever K is


class DynamicHeadUNet(nn.Module):
    """`unet` ends in WIDTH channels; a controller turns pooled bottleneck features and the label into a head for them.

    `forward(Query)` answers the labels asked [B,Q,*S], a list over scales under deep supervision (one head for all of
    them); `forward(Tensor)` answers nnU-Net's heads: one pass of encoder and decoder, one head per label.
    """

    encoder: Any
    decoder: Any

    def __init__(self, unet: UNet, num_labels: int, background_head: bool, output_labels: Sequence[int]):
        super().__init__()
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.num_labels, self.background_head, self.output_labels = num_labels, background_head, tuple(output_labels)
        self.controller = nn.Linear(self.encoder.output_channels[-1] + num_labels, sum(SIZES))

    def forward(self, query: Query | Tensor) -> Tensor | list[Tensor]:
        image = query.image if isinstance(query, Query) else query
        skips = self.encoder(image)
        output = self.decoder(skips)
        scales, pooled = output if isinstance(output, list) else [output], skips[-1].flatten(2).mean(2)
        if isinstance(query, Query):
            weights = self._weights(pooled, query.labels)
            queried = [dynamic_head(features, weights) for features in scales]
            return queried if self.decoder.deep_supervision else queried[0]
        labels = torch.tensor(self.output_labels, device=image.device).expand(image.shape[0], -1)
        chunks = labels.split(LABELS_AT_ONCE, dim=1)
        answers = torch.cat([dynamic_head(scales[0], self._weights(pooled, chunk)) for chunk in chunks], dim=1)
        return nnunet_heads(answers, self.output_labels, self.num_labels, self.background_head)

    def _weights(self, pooled: Float[Tensor, "B F"], labels: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q P"]:
        onehot = F.one_hot(labels.long(), self.num_labels + 1)[..., 1:].to(pooled)
        return self.controller(torch.cat((pooled[:, None].expand(-1, labels.shape[1], -1), onehot), dim=2))


def dynamic_head(features: Float[Tensor, "B F *S"], weights: Float[Tensor, "B Q P"]) -> Float[Tensor, "B Q *S"]:
    """Three 1x1 convolutions, ReLU between, with weights of their own for every sample and label."""
    batch, queried = weights.shape[:2]
    w1, b1, w2, b2, w3, b3 = weights.flatten(0, 1).split(SIZES, dim=1)
    x = features.flatten(2).repeat_interleave(queried, 0)
    x = F.relu(torch.baddbmm(b1[:, :, None], w1.view(-1, WIDTH, WIDTH), x))
    x = F.relu(torch.baddbmm(b2[:, :, None], w2.view(-1, WIDTH, WIDTH), x))
    x = torch.baddbmm(b3[:, :, None], w3.view(-1, 1, WIDTH), x)
    return x.view(batch, queried, *features.shape[2:])


def dynamic_head_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> DynamicHeadUNet:
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels, WIDTH, deep_supervision)
    return DynamicHeadUNet(unet, num_labels, background, output_labels_of(plans, num_labels))


class DoDNetTrainer(PartialLabelTrainer):
    """A dynamic head for the label asked, labels drawn as by ConditionalFiLMTrainer; one decoder pass predicts all."""

    method = Method(network=dynamic_head_unet, sampler=Pairs(), loss=MaskedDiceBCE)
