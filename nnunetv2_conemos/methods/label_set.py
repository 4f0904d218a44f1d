"""A planned U-Net conditioned on the set of labels asked: one output channel per label, one pass for all of them.

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** labels asked, **A** labels answered, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.film_unet import FiLMOptions, FiLMUNet, multi_hot
from nnunetv2_conemos.networks.heads import chosen_channels, chosen_heads, nnunet_heads
from nnunetv2_conemos.networks.planned import State, planned_unet, walk
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import has_background_head, method_options, output_labels_of
from nnunetv2_conemos.training.sampling import Pairs
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


class LabelSetOptions(FiLMOptions):
    """`one_by_one`: at prediction, ask each label alone, in a pass of its own, instead of all at once."""

    one_by_one: bool = False


class LabelSetUNet(FiLMUNet):
    """A K-output U-Net modulated by the multi-hot vector of the labels asked.

    `forward(Query)` answers the labels asked [B,Q,*S], a list over scales (fine to coarse) under deep supervision; what
    a label is answered depends on the set it is asked in. `forward(Tensor)` asks for all labels that are `answered` and
    gives nnU-Net's heads.
    """

    options_model = LabelSetOptions

    def forward(self, query: Query | Tensor) -> Tensor | list[Tensor]:
        try:
            if isinstance(query, Query):
                queried = self._ask(query.image, query.labels)
                return queried if self.decoder.deep_supervision else queried[0]
            answers = torch.cat([self._ask(query, labels)[0] for labels in self._questions(query)], dim=1)
            return nnunet_heads(answers, self.output_labels, self.num_labels, self.background_head)
        finally:
            self.condition.clear()

    def stock_weights(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Weights of the stock network with one output for each of these labels, asked together."""
        if self.options.one_by_one and len(labels) > 1:
            raise NotImplementedError("with `one_by_one`, labels are asked alone: export one (--label).")
        return chosen_heads(self.folded(labels), labels)

    def _questions(self, image: Float[Tensor, "B M *S"]) -> Sequence[Int[Tensor, "B A"]]:
        labels = torch.tensor(self.output_labels, device=image.device).expand(image.shape[0], -1)
        return labels.split(1, dim=1) if self.options.one_by_one else [labels]

    def _ask(self, image: Float[Tensor, "B M *S"], labels: Int[Tensor, "B Q"]) -> list[Tensor]:
        """Logits [B,Q,*S] at each scale, fine to coarse."""
        self.condition.code = self.code(multi_hot(labels, self.num_labels))
        shared, modulated = self.steps()
        logits = walk([*shared, *modulated], State(image)).logits
        return [chosen_channels(z, labels) for z in logits[::-1]]


def label_set_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> LabelSetUNet:
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels, num_labels, deep_supervision)
    options, output_labels = method_options(configuration, LabelSetOptions), output_labels_of(plans, num_labels)
    return LabelSetUNet(unet, num_labels, background, options, output_labels)


class LabelSetFiLMTrainer(PartialLabelTrainer):
    """FiLM conditioned on the set asked: one label, those annotated in the case, or all; each a third of the samples.

    Every label is met equally often, as in ConditionalFiLMTrainer; the loss counts the labels asked and known.
    """

    method = Method(network=label_set_unet, sampler=Pairs(("one", "annotated", "all")), loss=MaskedDiceBCE)
