"""One planned encoder and a planned decoder for each label (Med3D-like: Chen et al., arXiv:1904.00625).

Axis letters: **B** sample, **M** input channel, **Q** queried labels, **A** output labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.errors import UnsupportedError
from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.heads import chosen_channels
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method, without_options
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

MAX_LABELS = 16


class Decoders(nn.ModuleList):
    """The decoders, with nnU-Net's switch for deep supervision of all of them."""

    @property
    def deep_supervision(self) -> bool:
        return bool(self[0].deep_supervision)

    @deep_supervision.setter
    def deep_supervision(self, value: bool) -> None:
        decoder: Any
        for decoder in self:
            decoder.deep_supervision = value


class MultiDecoderUNet(PartialLabelNetwork):
    """One encoder and a one-output decoder for each label, taken from networks of the plans.

    In training every decoder runs for every sample, so that each step gives every parameter a gradient. Raises
    NotImplementedError above MAX_LABELS labels.
    """

    decoder: Decoders

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        first = spec.planned_unet(1)
        if spec.num_labels > MAX_LABELS:
            parameters = sum(p.numel() for p in first.decoder.parameters())
            raise UnsupportedError(
                f"MultiDecoderTrainer: {spec.num_labels} labels would need {spec.num_labels} decoders of "
                f"{parameters / 1e6:.1f} million parameters each and their activations; at most {MAX_LABELS} are "
                "allowed. Use MultiTalentTrainer."
            )
        unets = [first, *(spec.planned_unet(1) for _ in range(spec.num_labels - 1))]
        self.encoder = first.encoder
        self.decoder = Decoders([unet.decoder for unet in unets])
        for decoder in self.decoder:
            decoder.encoder = self.encoder  # nnU-Net's decoders keep a reference to theirs

    def queried_logits(self, query: Query) -> list[Tensor]:
        return [chosen_channels(z, query.labels) for z in self._scales(query.image, range(len(self.decoder)))]

    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        return self._scales(image, [label - 1 for label in self.output_labels])[0]

    def _scales(self, image: Tensor, decoders: Sequence[int]) -> list[Tensor]:
        skips = self.encoder(image)
        outputs = [self.decoder[k](skips) for k in decoders]
        per_label = [output if isinstance(output, list) else [output] for output in outputs]
        return [torch.cat(scale, dim=1) for scale in zip(*per_label, strict=True)]


class MultiDecoderTrainer(PartialLabelTrainer):
    """One decoder per label on a shared encoder; all annotated labels of a case at once."""

    method = Method(network=MultiDecoderUNet, sampler=Cases(), loss=without_options(MaskedDiceBCE))
