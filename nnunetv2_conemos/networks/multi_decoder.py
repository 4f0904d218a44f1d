"""One planned encoder and a planned decoder for each label (Med3D-like: Chen et al., arXiv:1904.00625).

Axis letters: **B** sample, **K** labels, **Q** labels asked, **A** labels answered, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.networks.multihead import chosen_channels, nnunet_heads
from nnunetv2_conemos.networks.planned import UNet
from nnunetv2_conemos.records import Query


class Decoders(nn.ModuleList):
    """The decoders, with nnU-Net's one switch for deep supervision."""

    @property
    def deep_supervision(self) -> bool:
        return bool(self[0].deep_supervision)

    @deep_supervision.setter
    def deep_supervision(self, value: bool) -> None:
        decoder: Any
        for decoder in self:
            decoder.deep_supervision = value


class MultiDecoderUNet(nn.Module):
    """`unets`: one one-output network per label, of which the encoder of the first and all decoders are used.

    `forward(Query)` answers the labels asked [B,Q,*S], a list over scales under deep supervision; `forward(Tensor)`
    answers nnU-Net's heads. In training every decoder runs for every sample, so that each step gives every parameter a
    gradient.
    """

    encoder: Any
    decoder: Decoders

    def __init__(self, unets: Sequence[UNet], background_head: bool, answered: Sequence[int]):
        super().__init__()
        self.encoder = unets[0].encoder
        self.decoder = Decoders([unet.decoder for unet in unets])
        for decoder in self.decoder:
            decoder.encoder = self.encoder  # nnU-Net's decoders know theirs
        self.background_head, self.answered = background_head, tuple(answered)

    def forward(self, query: Query | Tensor) -> Tensor | list[Tensor]:
        if isinstance(query, Query):
            asked = [chosen_channels(z, query.labels) for z in self._scales(query.image, range(len(self.decoder)))]
            return asked if self.decoder.deep_supervision else asked[0]
        answers = self._scales(query, [label - 1 for label in self.answered])[0]
        return nnunet_heads(answers, self.answered, len(self.decoder), self.background_head)

    def _scales(self, image: Tensor, decoders: Sequence[int]) -> list[Float[Tensor, "B A *S"]]:
        skips = self.encoder(image)
        outputs = [self.decoder[k](skips) for k in decoders]
        per_label = [output if isinstance(output, list) else [output] for output in outputs]
        return [torch.cat(scale, dim=1) for scale in zip(*per_label, strict=True)]
