"""A U-Net that is told the labels asked and the modality as tokens, and classifies with what becomes of the tokens.

Hermes: Gao et al., CVPR 2024, arXiv:2306.02416 ("context prior"). Axis letters: **B** sample, **M** input channel,
**K** labels, **Q** labels asked, **P** tokens, **F** features, **G** features of all places, ***S** space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from nnunetv2_conemos.methods.hermes.prior_fusion import MODALITY_TOKENS, PriorFusion, Priors, rows
from nnunetv2_conemos.networks.heads import nnunet_heads
from nnunetv2_conemos.networks.planned import State, Step, UNet, sequence_of, unet_steps, walk
from nnunetv2_conemos.records import Answer, Query

FUSED_FROM = 4  # places whose stride, over all stages so far, is at least this
BLOCKS, BOTTLENECK_BLOCKS = 2, 4


class HermesOptions(BaseModel):
    """Options of a plans configuration under the key `conemos`.

    `asked`: at prediction, a pass for each group of labels that were annotated together ("groups", as in training) or
    one pass for all labels ("all", a set that training may not have seen). `optimiser`: the method's, or nnU-Net's.
    `modality_dropout`: share of training samples whose modality is not told, so that an unknown one can be predicted.
    `mask_padding`: false attends to the padding of smaller sets too, as the published code does. `backbone`: of the
    plans, or the published network.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    asked: Literal["groups", "all"] = "groups"
    optimiser: Literal["LAMB", "nnU-Net"] = "LAMB"
    modality_dropout: float = Field(default=0.1, ge=0, le=1)
    mask_padding: bool = True
    backbone: Literal["planned", "hermes_r"] = "planned"


class HermesUNet(nn.Module):
    """`unet` with its priors: fused in from a stride of 4 on, in encoder and decoder.

    `forward(Query)` gives an `Answer`: logits of the labels asked [B,Q,*S] and of the modality; what a label is
    answered depends on the set it is asked in. `forward(Tensor)` gives nnU-Net's heads: each group of labels that were
    annotated together is asked, labels of several groups are averaged. There is no deep supervision.
    `modality` (1.., 0 = unknown) is that of images that come without one. `label_dims` and `modality_dims`: parameters
    with a dimension over labels (modalities), what is neither coming last.
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        unet: UNet,
        num_labels: int,
        background_head: bool,
        groups: Sequence[Sequence[int]],
        output_labels: Sequence[int],
        num_modalities: int = 0,
        modality: int = 0,
        options: HermesOptions | None = None,
    ):
        super().__init__()
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.num_labels, self.background_head, self.output_labels = num_labels, background_head, tuple(output_labels)
        self.num_modalities, self.modality, self.options = num_modalities, modality, options or HermesOptions()
        supervised = sorted({label for group in groups for label in group})
        self.groups = [list(group) for group in groups] if self.options.asked == "groups" else [supervised]
        self.priors = Priors()
        self._fuse()
        places = [n for n, m in self.named_modules(remove_duplicate=False) if isinstance(m, PriorFusion)]
        self.label_dims = {f"{name}.labels": 0 for name in places}
        self.modality_dims = {f"{name}.modalities": 0 for name in places}
        self.modality_dims |= {"modality_head.2.weight": 0, "modality_head.2.bias": 0}
        fused = sum(place.labels.shape[1] for place in self.places())
        width = self.encoder.output_channels[0]
        self.prototypes = prototype_head(fused, width)
        self.modality_norm = nn.LayerNorm(fused)
        self.modality_head = nn.Sequential(nn.Linear(fused, fused), nn.GELU(), nn.Linear(fused, max(1, num_modalities)))

    def _fuse(self) -> None:
        """Append a fusion to every stage that is coarse enough; features instead of logits leave the decoder."""
        widths, stages = self.encoder.output_channels, len(self.encoder.stages)
        strides = [max(stride) for stride in accumulate(map(np.array, self.encoder.strides), np.multiply)]
        fused = [i for i, stride in enumerate(strides) if stride >= FUSED_FROM] or [stages - 1]
        for i in fused:
            blocks = BOTTLENECK_BLOCKS if i == stages - 1 else BLOCKS
            self._append(self.encoder.stages[i], widths[i], blocks)
            if i < stages - 1:
                self._append(self.decoder.stages[stages - 2 - i], widths[i], BLOCKS)
        self.decoder.seg_layers = nn.ModuleList(nn.Identity() for _ in self.decoder.stages)
        self.decoder.deep_supervision = False

    def _append(self, stage: nn.Module, width: int, blocks: int) -> None:
        sequence_of(stage).append(PriorFusion(self.priors, self.num_labels, self.num_modalities, width, blocks))

    def places(self) -> Iterator[PriorFusion]:
        """The fusions, in the order of the forward pass."""
        return (step.module for step in unet_steps(self) if isinstance(step.module, PriorFusion))

    def forward(self, query: Query | Tensor) -> Answer | Tensor:
        try:
            if isinstance(query, Query):
                shared, fused = self.steps()
                return self._ask(fused, walk(shared, State(query.image)), query.labels, self._told(query))
            return self._answer_all(query)
        finally:
            self.priors.clear()

    def steps(self) -> tuple[list[Step], list[Step]]:
        """The steps before the first fusion, run once per image, and the rest, run for each set of labels asked."""
        steps = list(unet_steps(self))
        first = next(i for i, step in enumerate(steps) if isinstance(step.module, PriorFusion))
        return steps[:first], steps[first:]

    def _told(self, query: Query) -> Int[Tensor, " B"]:
        """The modality of each sample; in training, some are not told."""
        told = query.modality
        if told is None:
            return torch.full_like(query.labels[:, 0], self.modality)
        if self.training:
            told = told * (torch.rand(told.shape, device=told.device) >= self.options.modality_dropout)
        return told

    def _answer_all(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B heads *S"]:
        shared, fused = self.steps()
        state = walk(shared, State(image))
        answers: dict[int, list[Tensor]] = {label: [] for label in self.output_labels}
        for group in self.groups:
            if not set(group) & set(answers):
                continue
            labels = torch.tensor(group, device=image.device).expand(len(image), -1)
            fresh = state._replace(features=state.features.clone())  # nonlinearities work in place
            logits = self._ask(fused, fresh, labels, torch.full_like(labels[:, 0], self.modality)).logits
            for channel, label in enumerate(group):
                if label in answers:
                    answers[label].append(logits[:, channel])
        means = torch.stack([sum(found[1:], found[0]) / len(found) for found in answers.values()], dim=1)
        return nnunet_heads(means, self.output_labels, self.num_labels, self.background_head)

    def _ask(self, steps: list[Step], state: State, labels: Int[Tensor, "B Q"], modality: Int[Tensor, " B"]) -> Answer:
        queried = labels.shape[1]
        self.priors.sampler(F.pad(labels, (0, 1)), modality, self.options.mask_padding)  # one null token always
        features = walk(steps, state).logits[-1]
        tokens = torch.cat(self.priors.posteriors, dim=2)
        prototypes = self.prototypes(tokens[:, :queried])
        logits = torch.bmm(prototypes, features.flatten(2)).unflatten(2, features.shape[2:])
        return Answer(logits, self.modality_head(self.modality_norm(tokens[:, -MODALITY_TOKENS:]).mean(1)))

    @torch.no_grad()
    def label_priors(self) -> Float[Tensor, "K G"]:
        """The learned token of each label, those of all places after each other."""
        labels = torch.arange(1, self.num_labels + 1, device=self.modality_norm.weight.device)
        return torch.cat([rows(place.labels, labels) for place in self.places()], dim=1)


def prototype_head(fused: int, width: int) -> nn.Sequential:
    """Posterior tokens [B,Q,G] -> a 1x1 classifier for each label asked [B,Q,F]."""
    layers = [nn.Linear(fused, fused), nn.Linear(fused, width), nn.Linear(width, width), nn.Linear(width, width)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    first, second, third, fourth = layers
    return nn.Sequential(nn.LayerNorm(fused), first, nn.GELU(), second, third, nn.GELU(), fourth)
