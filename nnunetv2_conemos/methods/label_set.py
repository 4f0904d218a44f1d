"""A planned U-Net conditioned on the set of queried labels: one output channel per label, one pass for all of them.

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** queried labels, **A** output labels, ***S** space.
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
from nnunetv2_conemos.networks.heads import chosen_channels, chosen_heads
from nnunetv2_conemos.networks.spec import NetworkSpec
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.early_leaving import EarlyLeavingTrainer
from nnunetv2_conemos.training.method import Method, without_options
from nnunetv2_conemos.training.sampling import Pairs


class LabelSetOptions(FiLMOptions):
    """Options of FiLM, and `one_by_one`: at prediction, query each label in a separate pass, not all at once."""

    one_by_one: bool = False


class LabelSetUNet(EarlyLeavingUNet):
    """A K-output U-Net modulated by the multi-hot vector of the queried labels.

    The logits of a label depend on the set it is queried in; prediction queries all output labels together.
    """

    options_model = LabelSetOptions
    labels_at_once: ClassVar[int] = 1  # of K channels each

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec, num_outputs=spec.num_labels)
        self.pass_per_label = self.options.one_by_one

    def queried_logits(self, query: Query) -> list[Tensor]:
        return self._set_of_labels(query.image, query.labels)

    def every_label(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        labels = self.output_queries(image)
        sets = labels.split(1, dim=1) if self.pass_per_label else [labels]
        return torch.cat([self._set_of_labels(image, one)[0] for one in sets], dim=1)

    def stock_weights(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Return the weights of the stock network with one output for each of these labels, queried together."""
        if self.options.one_by_one and len(labels) > 1:
            raise UnsupportedError("with `one_by_one`, labels are queried alone: export one (--label).")
        return chosen_heads(self.folded(labels), labels)

    def _set_of_labels(self, image: Float[Tensor, "B M *S"], labels: Int[Tensor, "B Q"]) -> list[Tensor]:
        logits = self.conditioned(self.shared(image), multi_hot(labels, self.num_labels))
        return [chosen_channels(z, labels) for z in logits]


class LabelSetFiLMTrainer(EarlyLeavingTrainer):
    """FiLM conditioned on a set of labels: one, those annotated in the case, or all; each for a third of the samples.

    Every label is sampled equally often, as in ConditionalFiLMTrainer; the loss counts queried labels that are known.
    """

    method = Method(
        network=LabelSetUNet,
        sampler=Pairs(("one", "annotated", "all")),
        loss=without_options(MaskedDiceBCE),
        options=LabelSetOptions,
    )
