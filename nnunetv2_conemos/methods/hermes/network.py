"""A U-Net conditioned on labels and modality by tokens; the posterior tokens then classify its features.

Hermes: Gao et al., CVPR 2024, arXiv:2306.02416 ("context prior"). Axis letters: **B** sample, **M** input channel,
**K** labels, **Q** queried labels, **A** output labels, **P** tokens, **F** features, **G** features of all places,
***S** space.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from dynamic_network_architectures.building_blocks.residual import StackedResidualBlocks
from dynamic_network_architectures.building_blocks.simple_conv_blocks import StackedConvBlocks
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from nnunetv2_conemos.methods.hermes.backbone import published_unet
from nnunetv2_conemos.methods.hermes.loss import HermesOutput
from nnunetv2_conemos.methods.hermes.prior_fusion import MODALITY_TOKENS, PriorFusion, Priors, rows
from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.planned import UNetState, num_stages, run_stages
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec
from nnunetv2_conemos.records import Query

FUSED_FROM = 4  # accumulated stride from which stages are fused with the priors
BLOCKS, BOTTLENECK_BLOCKS = 2, 4


class HermesOptions(MethodOptions):
    """Options of a plans configuration under the key `conemos`.

    `asked`: at prediction, a pass for each group of labels that were annotated together ("groups", as in training) or
    one pass for all labels ("all", a set that training may not have seen). `optimiser`: the method's, or nnU-Net's.
    `modality_dropout`: share of training samples whose modality is withheld, so that an unknown one can be predicted.
    `mask_padding`: false attends to the padding of smaller sets too, as the published code does. `backbone`: of the
    plans, or the published network.
    """

    asked: Literal["groups", "all"] = "groups"
    optimiser: Literal["LAMB", "nnU-Net"] = "LAMB"
    modality_dropout: float = Field(default=0.1, ge=0, le=1)
    mask_padding: bool = True
    backbone: Literal["planned", "hermes_r"] = "planned"


class HermesUNet(PartialLabelNetwork):
    """A U-Net whose stages of stride 4 and more, in encoder and decoder, are fused with learnt priors.

    The logits of a label depend on the set it is queried in, so prediction queries each group of labels that were
    annotated together and averages labels of several groups. There is no deep supervision. `modality` (1.., 0 is
    unknown) is that of images that come without one; it may be set on a built network. `label_dims` and
    `modality_dims`: parameters with a dimension over labels (modalities); the entry of none of them is the last.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        self.options = spec.options(HermesOptions)
        self.num_modalities, self.modality = len(spec.modalities), spec.modality
        supervised = sorted({label for group in spec.groups for label in group})
        self.groups = [list(group) for group in spec.groups] if self.options.asked == "groups" else [supervised]
        unet: Any
        if self.options.backbone == "planned":
            unet = spec.planned_unet(1)
        else:
            unet = published_unet(spec.configuration.patch_size, spec.num_input_channels)
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.priors = Priors()
        self.first_fused_stage = self._fuse()
        places = [n for n, m in self.named_modules(remove_duplicate=False) if isinstance(m, PriorFusion)]
        self.label_dims = {f"{name}.labels": 0 for name in places}
        self.modality_dims = {f"{name}.modalities": 0 for name in places}
        self.modality_dims |= {"modality_head.2.weight": 0, "modality_head.2.bias": 0}
        fused = sum(place.labels.shape[1] for place in self.places())
        width, modalities = self.encoder.output_channels[0], max(1, self.num_modalities)
        self.prototypes = prototype_head(fused, width)
        self.modality_norm = nn.LayerNorm(fused)
        self.modality_head = nn.Sequential(nn.Linear(fused, fused), nn.GELU(), nn.Linear(fused, modalities))

    def _fuse(self) -> int:
        """Append a fusion to every stage that is coarse enough, and let the decoder return features, not logits.

        Return the first of these stages.
        """
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
        return fused[0]

    def _append(self, stage: nn.Module, width: int, blocks: int) -> None:
        sequence_of(stage).append(PriorFusion(self.priors, self.num_labels, self.num_modalities, width, blocks))

    def places(self) -> Iterator[PriorFusion]:
        """Iterate over the fusions in the order of the forward pass."""
        stages = (*self.encoder.stages, *self.decoder.stages)
        return (module for stage in stages for module in stage.modules() if isinstance(module, PriorFusion))

    def queried_logits(self, query: Query) -> HermesOutput:
        return self._fused(self._shared(query.image), query.labels, self._given_modality(query))

    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        shared = self._shared(image)
        found: dict[int, list[Tensor]] = {label: [] for label in self.output_labels}
        for group in self.groups:
            if not set(group) & set(found):
                continue
            labels = torch.tensor(group, device=image.device).expand(len(image), -1)
            logits = self._fused(shared, labels, torch.full_like(labels[:, 0], self.modality)).logits
            for channel, label in enumerate(group):
                if label in found:
                    found[label].append(logits[:, channel])
        return torch.stack([sum(of_groups[1:], of_groups[0]) / len(of_groups) for of_groups in found.values()], dim=1)

    def clear_condition(self) -> None:
        self.priors.clear()

    def _shared(self, image: Float[Tensor, "B M *S"]) -> UNetState:
        """Run the stages before the first fusion, once per image."""
        return run_stages(self, UNetState(image), range(self.first_fused_stage))

    def _given_modality(self, query: Query) -> Int[Tensor, " B"]:
        """Return the modality that each sample is conditioned on; in training, that of some is withheld."""
        given = query.modality
        if given is None:
            return torch.full_like(query.labels[:, 0], self.modality)
        if self.training:
            given = given * (torch.rand(given.shape, device=given.device) >= self.options.modality_dropout)
        return given

    def _fused(self, shared: UNetState, labels: Int[Tensor, "B Q"], modality: Int[Tensor, " B"]) -> HermesOutput:
        num_queried = labels.shape[1]
        self.priors.condition(F.pad(labels, (0, 1)), modality, self.options.mask_padding)  # one null token always
        features = run_stages(self, shared, range(self.first_fused_stage, num_stages(self))).logits[-1]
        tokens = torch.cat(self.priors.posteriors, dim=2)
        prototypes = self.prototypes(tokens[:, :num_queried])
        logits = torch.bmm(prototypes, features.flatten(2)).unflatten(2, features.shape[2:])
        return HermesOutput(logits, self.modality_head(self.modality_norm(tokens[:, -MODALITY_TOKENS:]).mean(1)))

    @torch.no_grad()
    def label_priors(self) -> Float[Tensor, "K G"]:
        """Return the learnt token of each label, concatenated over all places."""
        labels = torch.arange(1, self.num_labels + 1, device=self.modality_norm.weight.device)
        return torch.cat([rows(place.labels, labels) for place in self.places()], dim=1)


def sequence_of(stage: nn.Module) -> nn.Sequential:
    """Return the innermost sequence that ends with the stage; a module appended to it runs last in the stage."""
    if isinstance(stage, StackedConvBlocks):
        return stage.convs
    if isinstance(stage, StackedResidualBlocks):
        return stage.blocks
    assert isinstance(stage, nn.Sequential)
    return stage


def prototype_head(fused: int, width: int) -> nn.Sequential:
    """Build the layers from posterior tokens [B,Q,G] to a 1x1 classifier of each queried label [B,Q,F]."""
    layers = [nn.Linear(fused, fused), nn.Linear(fused, width), nn.Linear(width, width), nn.Linear(width, width)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    first, second, third, fourth = layers
    return nn.Sequential(nn.LayerNorm(fused), first, nn.GELU(), second, third, nn.GELU(), fourth)
