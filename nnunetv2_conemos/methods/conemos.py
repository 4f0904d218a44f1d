"""CoNeMOS: one network, one label asked at a time (Billot et al., MIDL 2024, PMLR 250:119-130)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.networks.film_unet import FiLMOptions, FiLMUNet, multi_hot
from nnunetv2_conemos.networks.heads import nnunet_heads
from nnunetv2_conemos.networks.planned import State, Step, planned_unet, repeat_samples, walk
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.plans_facts import has_background_head, method_options, output_labels_of
from nnunetv2_conemos.training.sampling import Pairs
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

LABELS_AT_ONCE = 4  # at prediction; bounds the memory of the network whatever K is


class ConditionalUNet(FiLMUNet):
    """A one-output U-Net modulated by the one label asked.

    `forward(Query)` answers the labels asked, [B,Q,*S], as a list over scales (fine to coarse) under deep supervision.
    `forward(Tensor)` answers all labels at full resolution in nnU-Net's head order, [B,K+1,*S] with a zero background
    head or [B,K,*S] for regions, in memory of its own.
    """

    def forward(self, query: Query | Tensor) -> Tensor | list[Tensor]:
        try:
            return self._answer(query) if isinstance(query, Query) else self._answer_all(query)
        finally:
            self.condition.clear()

    def stock_weights(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Weights of the stock one-output network for one label; raises NotImplementedError for several."""
        if len(labels) != 1:
            raise NotImplementedError("this network answers one label at a time: export one (--label).")
        return self.folded(labels)

    def _answer(self, query: Query) -> Tensor | list[Tensor]:
        deep = self.decoder.deep_supervision
        shared, per_label = self.steps()
        logits = self._ask(per_label, walk(shared, State(query.image)), query.labels)
        return logits[::-1] if deep else logits[-1]

    def _answer_all(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B heads *S"]:
        shared, per_label = self.steps()
        state = walk(shared, State(image))
        labels = torch.tensor(self.output_labels, device=image.device).expand(image.shape[0], -1)
        answers = []
        for chunk in labels.split(LABELS_AT_ONCE, dim=1):
            fresh = state._replace(features=state.features.clone())  # nonlinearities work in place
            answers.append(self._ask(per_label, fresh, chunk)[-1])
        return nnunet_heads(torch.cat(answers, dim=1), self.output_labels, self.num_labels, self.background_head)

    def _ask(self, steps: list[Step], state: State, labels: Int[Tensor, "B Q"]) -> list[Tensor]:
        """Logits [B,Q,*S] at each scale, coarse to fine."""
        self.condition.code = self.code(multi_hot(labels.flatten()[:, None], self.num_labels))
        state = state._replace(features=repeat_samples(state.features, labels.shape[1]))
        return [z.view(*labels.shape, *z.shape[2:]) for z in walk(steps, state).logits]


def conditional_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> ConditionalUNet:
    background = has_background_head(plans)
    num_labels = heads - background
    unet = planned_unet(configuration, channels, 1, deep_supervision)
    options, output_labels = method_options(configuration, FiLMOptions), output_labels_of(plans, num_labels)
    return ConditionalUNet(unet, num_labels, background, options, output_labels)


class ConditionalFiLMTrainer(PartialLabelTrainer):
    """FiLM in every norm, a label drawn uniformly for each sample, Dice + BCE on that label alone."""

    method = Method(network=conditional_unet, sampler=Pairs(), loss=MaskedDiceBCE)
