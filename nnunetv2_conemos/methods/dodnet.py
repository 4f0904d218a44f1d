"""A planned U-Net whose last layers are generated from image and label (DoDNet: Zhang et al., CVPR 2021).

Axis letters: **B** sample, **M** input channel, **Q** queried labels, **A** output labels, **F** features,
**P** generated weights, ***S** space.
"""

from __future__ import annotations

from math import pi
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.norms import group_norm
from nnunetv2_conemos.networks.planned import conv_blocks
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method, without_options
from nnunetv2_conemos.training.sampling import Pairs
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

WIDTH = 8  # channels of the dynamic head
SIZES = (WIDTH * WIDTH, WIDTH, WIDTH * WIDTH, WIDTH, WIDTH, 1)  # weights and biases of three 1x1 convolutions: 153
LABELS_AT_ONCE = 4  # at prediction; bounds the memory of the heads whatever K is


class DoDNetOptions(MethodOptions):
    """`controller`: sees the bottleneck before its last norm, group norm and ReLU there, or after it.

    After an instance norm every image has nearly the same mean features, so the controller sees the label alone.
    """

    earlier = {"controller": "after_norm"}  # noqa: RUF012

    controller: Literal["before_norm", "after_norm"] = "before_norm"


class DynamicHeadUNet(PartialLabelNetwork):
    """A U-Net that ends in WIDTH channels, and a controller: bottleneck features and label -> a head for the channels.

    One pass of encoder and decoder serves all labels, and one generated head serves all scales.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        unet = spec.planned_unet(WIDTH)
        self.encoder, self.decoder = unet.encoder, unet.decoder
        features = self.encoder.output_channels[-1]
        self.controller = nn.Linear(features + self.num_labels, sum(SIZES))
        self.bottleneck: Tensor | None = None  # of the current pass, before its last norm
        self.seen: nn.Module | None = None
        if spec.options(DoDNetOptions).controller == "before_norm":
            self.seen = nn.Sequential(group_norm(features), nn.ReLU())
            last_block(self.encoder).conv.register_forward_hook(self._keep_bottleneck)
            initialise(self.controller, features)

    def queried_logits(self, query: Query) -> list[Tensor]:
        scales, pooled = self._features(query.image)
        weights = self._weights(pooled, query.labels)
        return [dynamic_head(features, weights) for features in scales]

    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        (finest, *_), pooled = self._features(image)
        chunks = self.output_queries(image).split(LABELS_AT_ONCE, dim=1)
        return torch.cat([dynamic_head(finest, self._weights(pooled, labels)) for labels in chunks], dim=1)

    def _features(self, image: Float[Tensor, "B M *S"]) -> tuple[list[Tensor], Float[Tensor, "B F"]]:
        """Return the WIDTH channels of each scale, fine to coarse, and the pooled bottleneck."""
        skips = self.encoder(image)
        seen = skips[-1] if self.seen is None else self.seen(self.bottleneck)
        output = self.decoder(skips)
        return output if isinstance(output, list) else [output], seen.flatten(2).mean(2)

    def _keep_bottleneck(self, module: nn.Module, given: Any, output: Tensor) -> None:
        self.bottleneck = output

    def clear_condition(self) -> None:
        self.bottleneck = None

    def _weights(self, pooled: Float[Tensor, "B F"], labels: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q P"]:
        onehot = F.one_hot(labels.long(), self.num_labels + 1)[..., 1:].to(pooled)
        return self.controller(torch.cat((pooled[:, None].expand(-1, labels.shape[1], -1), onehot), dim=2))


def last_block(encoder: Any) -> Any:
    """Return the last convolution block of an encoder, that of the main path where there are shortcuts."""
    stage = encoder.stages[-1]
    shortcuts = {m for name, m in stage.named_modules() if ".skip." in f".{name}."}
    return [block for block in conv_blocks(stage) if block not in shortcuts][-1]


@torch.no_grad()
def initialise(controller: nn.Linear, features: int) -> None:
    """Start with generated convolutions of the variance of He et al. (ICCV 2015), 2 / WIDTH, and without biases.

    Half of it comes from the label, half from the image, whose features are means of rectified standard normals.
    """
    nn.init.zeros_(controller.bias)
    of_image, of_label = controller.weight[:, :features], controller.weight[:, features:]
    nn.init.normal_(of_image, std=(1 / WIDTH * 2 * pi / features) ** 0.5)
    nn.init.normal_(of_label, std=(1 / WIDTH) ** 0.5)
    for rows in controller.weight.split(SIZES)[1::2]:
        rows.zero_()


def dynamic_head(features: Float[Tensor, "B F *S"], weights: Float[Tensor, "B Q P"]) -> Float[Tensor, "B Q *S"]:
    """Apply three 1x1 convolutions, with ReLU between and separate weights for every sample and label."""
    batch, queried = weights.shape[:2]
    w1, b1, w2, b2, w3, b3 = weights.flatten(0, 1).split(SIZES, dim=1)
    x = features.flatten(2).repeat_interleave(queried, 0)
    x = F.relu(torch.baddbmm(b1[:, :, None], w1.view(-1, WIDTH, WIDTH), x))
    x = F.relu(torch.baddbmm(b2[:, :, None], w2.view(-1, WIDTH, WIDTH), x))
    x = torch.baddbmm(b3[:, :, None], w3.view(-1, 1, WIDTH), x)
    return x.view(batch, queried, *features.shape[2:])


class DoDNetTrainer(PartialLabelTrainer):
    """A dynamic head for each annotated label of a case, sampled as in ConditionalFiLMTrainer; one decoder for all."""

    method = Method(
        network=DynamicHeadUNet,
        sampler=Pairs(("annotated",)),
        loss=without_options(MaskedDiceBCE),
        options=DoDNetOptions,
    )
