"""One planned encoder and a planned decoder for each label (Med3D-like: Chen et al., arXiv:1904.00625).

Axis letters: **B** sample, **K** labels, **Q** labels asked, **A** labels answered, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.heads import chosen_channels, nnunet_heads
from nnunetv2_conemos.networks.planned import UNet, planned_unet
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import has_background_head, output_labels_of
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


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

    def __init__(self, unets: Sequence[UNet], background_head: bool, output_labels: Sequence[int]):
        super().__init__()
        self.encoder = unets[0].encoder
        self.decoder = Decoders([unet.decoder for unet in unets])
        for decoder in self.decoder:
            decoder.encoder = self.encoder  # nnU-Net's decoders know theirs
        self.background_head, self.output_labels = background_head, tuple(output_labels)

    def forward(self, query: Query | Tensor) -> Tensor | list[Tensor]:
        if isinstance(query, Query):
            queried = [chosen_channels(z, query.labels) for z in self._scales(query.image, range(len(self.decoder)))]
            return queried if self.decoder.deep_supervision else queried[0]
        answers = self._scales(query, [label - 1 for label in self.output_labels])[0]
        return nnunet_heads(answers, self.output_labels, len(self.decoder), self.background_head)

    def _scales(self, image: Tensor, decoders: Sequence[int]) -> list[Float[Tensor, "B A *S"]]:
        skips = self.encoder(image)
        outputs = [self.decoder[k](skips) for k in decoders]
        per_label = [output if isinstance(output, list) else [output] for output in outputs]
        return [torch.cat(scale, dim=1) for scale in zip(*per_label, strict=True)]


MAX_LABELS = 16


def multi_decoder_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> MultiDecoderUNet:
    """Raises NotImplementedError above MOST_LABELS labels."""
    background = has_background_head(plans)
    num_labels = heads - background
    first = planned_unet(configuration, channels, 1, deep_supervision)
    if num_labels > MAX_LABELS:
        parameters = sum(p.numel() for p in first.decoder.parameters())
        raise NotImplementedError(
            f"MultiDecoderTrainer: {num_labels} labels would need {num_labels} decoders of {parameters / 1e6:.1f} "
            f"million parameters each and their activations; at most {MAX_LABELS} are allowed. Use MultiTalentTrainer."
        )
    rest = [planned_unet(configuration, channels, 1, deep_supervision) for _ in range(num_labels - 1)]
    return MultiDecoderUNet([first, *rest], background, output_labels_of(plans, num_labels))


class MultiDecoderTrainer(PartialLabelTrainer):
    """One decoder per label on a shared encoder; all annotated labels of a case at once."""

    method = Method(network=multi_decoder_unet, sampler=Cases(), loss=MaskedDiceBCE)
