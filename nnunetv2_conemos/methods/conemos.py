"""CoNeMOS: one network, one label queried at a time (Billot et al., MIDL 2024, PMLR 250:119-130).

Axis letters: **B** sample, **M** input channel, **Q** queried labels, **A** output labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnunetv2_conemos.errors import UnsupportedError
from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.early_leaving import EarlyLeavingUNet
from nnunetv2_conemos.networks.film_unet import FiLMOptions, multi_hot
from nnunetv2_conemos.networks.planned import UNetState, repeat_samples
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.early_leaving import EarlyLeavingTrainer
from nnunetv2_conemos.training.method import Method, without_options
from nnunetv2_conemos.training.sampling import Pairs


class ConditionalUNet(EarlyLeavingUNet):
    """A one-output U-Net modulated by the one queried label; several labels take several passes."""

    pass_per_label = True
    labels_at_once: ClassVar[int] = 4

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec, num_outputs=1)

    def queried_logits(self, query: Query) -> list[Tensor]:
        return self._each_label(self.shared(query.image), query.labels)

    def every_label(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        shared, labels = self.shared(image), self.output_queries(image)
        return torch.cat(
            [self._each_label(shared, some)[0] for some in labels.split(self.labels_at_once, dim=1)], dim=1
        )

    def stock_weights(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Return the weights of the stock one-output network of one label; raises NotImplementedError for several."""
        if len(labels) != 1:
            raise UnsupportedError("this network predicts one label at a time: export one (--label).")
        return self.folded(labels)

    def _each_label(self, shared: UNetState, labels: Int[Tensor, "B Q"]) -> list[Tensor]:
        state = shared._replace(features=repeat_samples(shared.features, labels.shape[1]))
        logits = self.conditioned(state, multi_hot(labels.flatten()[:, None], self.num_labels))
        return [z.view(*labels.shape, *z.shape[2:]) for z in logits]


class ConditionalFiLMTrainer(EarlyLeavingTrainer):
    """FiLM in every norm, a label sampled uniformly for each sample, Dice + BCE on that label alone."""

    method = Method(network=ConditionalUNet, sampler=Pairs(), loss=without_options(MaskedDiceBCE), options=FiLMOptions)
