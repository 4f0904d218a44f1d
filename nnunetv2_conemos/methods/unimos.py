"""UniMOS: completely, partially and not annotated cases together (PIPO-FAN: Fang & Yan, TMI 2020; UniMatch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from nnunetv2_conemos.losses.merged import merged_log_probabilities
from nnunetv2_conemos.losses.target_adaptive import TargetAdaptiveLoss, weighted_nll
from nnunetv2_conemos.method import Method, Optimiser, Parameters, answered_labels, method_options
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.networks.pyramid import PlannedScales, Pyramid
from nnunetv2_conemos.networks.scale_fusion import FusedScalesUNet, Perturb
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.sampling import Cases
from nnunetv2_conemos.schedules import StepwiseDecayLR
from nnunetv2_conemos.semi_supervised import SemiSupervisedTrainer
from nnunetv2_conemos.sources import SourceTable
from nnunetv2_conemos.trainer import move
from nnunetv2_conemos.views import boxes, pasted, photometric, turned

THRESHOLDS = ((0.56, 0.9), (0.28, 0.8), (0.0, 0.7))  # from a share of the training on: probability that is believed
PERTURBED, STRONG = 0.5, 0.25  # weights of the feature-perturbed and of each strong view
ACCEPTED = "accepted pseudo-label voxels"
LEARNING_RATE = 5e-4  # of RMSprop, as published


class UniMOSOptions(BaseModel):
    """Options of a plans configuration under the key `conemos`.

    `network`: the published one with the widths and strides of the plans, or the planned U-Net, both with fused scales.
    `perturb`: channels of the logits of each scale (as published) or of the features handed to the decoder (UniMatch).
    `targets`: what an unlabelled case is asked: all labels, or those annotated in other cases of its `dataset`.
    `dice_weight`: of a Dice term beside the cross-entropy of annotated cases (published: none).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    network: Literal["pyramid", "planned"] = "pyramid"
    perturb: Literal["logits", "features"] = "logits"
    targets: Literal["all", "dataset"] = "all"
    optimiser: Literal["nnU-Net", "RMSprop"] = "nnU-Net"
    dice_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)


def fused_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> FusedScalesUNet:
    options = method_options(configuration, UniMOSOptions)
    unet = planned_unet(configuration, channels, heads, deep_supervision=True)
    if options.network == "planned":
        network: torch.nn.Module = PlannedScales(unet, heads)
    else:
        encoder: Any = unet.encoder
        network = Pyramid(channels, heads, encoder.output_channels, encoder.strides, encoder.conv_op)
    return FusedScalesUNet(network, answered_labels(plans, heads - 1), options.perturb == "features")


def rmsprop(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser | None:
    """The published optimiser and its schedule, stretched to the length of the training; None for nnU-Net's."""
    if method_options(configuration, UniMOSOptions).optimiser != "RMSprop":
        return None
    optimiser = torch.optim.RMSprop(parameters, lr=LEARNING_RATE, momentum=0.9)
    return optimiser, StepwiseDecayLR(optimiser, LEARNING_RATE, epochs)


def threshold(progress: float) -> float:
    """The probability from which a pseudo-label counts, at a share of the training."""
    return next(value for start, value in THRESHOLDS if progress >= start)


class PseudoLabels(NamedTuple):
    """The likeliest class of each voxel, [B,*S] integer, and its probability, [B,*S] float."""

    label: Tensor
    confidence: Tensor


def pseudo_labels(
    logits: Float[Tensor, "B K *S"], asked: Bool[Tensor, "B K"], possible: Bool[Tensor, "B K"]
) -> PseudoLabels:
    """Among background and the labels asked, the others counted as background; without a gradient.

    Labels that a case cannot show (not in `possible`) have no part in it.
    """
    ruled_out = ~possible.view(*possible.shape, *(1,) * (logits.ndim - 2))
    confidence, label = merged_log_probabilities(logits.detach().masked_fill(ruled_out, -torch.inf), asked).exp().max(1)
    return PseudoLabels(label, confidence)


def consistency(
    logits: Float[Tensor, "B K *S"],
    asked: Bool[Tensor, "B K"],
    label: Int[Tensor, " B *S"],
    accepted: Bool[Tensor, " B *S"],
) -> Float[Tensor, ""]:
    """Weighted cross-entropy with accepted pseudo-labels, divided by the number of all voxels."""
    nll, _ = weighted_nll(merged_log_probabilities(logits, asked), label)
    return (nll * accepted).sum() / nll.numel()


class Unlabelled(NamedTuple):
    """Images [B,M,*S]; `inside` [B,*S]: neither padding nor what nnU-Net took for nothing but zeros around the body,
    about which nothing is believed; `possible` [B,K]: the labels that a case may show.
    """

    image: Tensor
    inside: Tensor
    possible: Tensor


class Views:
    """Views of unlabelled images and what is believed about them.

    `unlabelled`: weak views, and others that are pasted into their strong views; `asked` [B,K]: the labels that they
    are asked; `believed`: the probability from which a pseudo-label counts. `perturbed` comes before `strong`.
    """

    def __init__(self, network: torch.nn.Module, unlabelled: Unlabelled, asked: Tensor, believed: float):
        self.network, self.asked, self.believed = network, asked, believed
        self.weak, self.mixed = (
            Unlabelled(*half) for half in zip(*(part.chunk(2) for part in unlabelled), strict=True)
        )
        self.every = torch.arange(1, asked.shape[1] + 1, device=asked.device).expand(len(asked), -1)
        self.of_mixed = self._pseudo_labels(network(Query(self.mixed.image, self.every)), self.mixed)
        self.of_weak: PseudoLabels | None = None

    def perturbed(self) -> Float[Tensor, ""]:
        """Consistency of the perturbed answer with the plain one, of one pass of the encoder."""
        plain, other = self.network(Perturb(self.weak.image))
        self.of_weak = self._pseudo_labels(plain, self.weak)
        return self._consistency(other, self.of_weak)

    def strong(self) -> Float[Tensor, ""]:
        """Consistency of a strong view, with a box of another image in it, with what is believed of both."""
        assert self.of_weak is not None
        image = self.weak.image
        box = boxes(image.shape, image.device)
        pairs = zip(self.of_mixed, self.of_weak, strict=True)
        believed = PseudoLabels(*(pasted(box, other, own) for other, own in pairs))
        view = pasted(box, photometric(self.mixed.image), photometric(image))
        return self._consistency(self.network(Query(view, self.every)), believed)

    @property
    def accepted(self) -> float:
        """Share of the voxels inside the weak views whose pseudo-label counts."""
        assert self.of_weak is not None
        return ((self.of_weak.confidence >= self.believed).sum() / self.weak.inside.sum().clamp_min(1)).item()

    def _pseudo_labels(self, logits: Tensor, of: Unlabelled) -> PseudoLabels:
        found = pseudo_labels(logits, self.asked, of.possible)
        return found._replace(confidence=found.confidence * of.inside)

    def _consistency(self, logits: Tensor, believed: PseudoLabels) -> Tensor:
        return consistency(logits, self.asked, believed.label, believed.confidence >= self.believed)


def targets_of(table: SourceTable, cases: Sequence[str], how: str) -> dict[str, np.ndarray]:
    """Training case -> boolean [K]: the labels that it is asked unlabelled, of those that all `cases` teach, or that
    those of its dataset do.
    """
    everything = table.taught(cases)
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(table.dataset_of(case) if how == "dataset" else "", []).append(case)
    taught = {dataset: table.taught(of_dataset) for dataset, of_dataset in members.items()}
    return {
        case: taught[dataset] if taught[dataset].any() else everything
        for dataset, of_dataset in members.items()
        for case in of_dataset
    }


class UniMOSTrainer(SemiSupervisedTrainer):
    """Target adaptive loss on annotated cases, pseudo-labels and consistency of views on the others; no regions."""

    method = Method(
        network=fused_unet, ask=Cases(every=True), loss=TargetAdaptiveLoss, regions=False, optimiser=rmsprop
    )
    settings = {"enable_deep_supervision": False}  # noqa: RUF012
    unlabelled_per_sample = 2  # one of them is pasted into the other
    extras = ("unsupervised loss", ACCEPTED)
    targets: dict[str, np.ndarray]  # training case -> boolean [K]: the labels that it is asked unlabelled

    def get_dataloaders(self) -> tuple[Any, Any]:
        loaders = super().get_dataloaders()
        how = method_options(self.configuration_manager, UniMOSOptions).targets
        self.targets = targets_of(self.table, self.training_cases, how)
        return loaders

    def _build_loss(self) -> torch.nn.Module:
        loss: Any = super()._build_loss()
        loss.dice_weight = method_options(self.configuration_manager, UniMOSOptions).dice_weight
        return loss

    def two_stream_step(self, labelled: dict, unlabelled: dict) -> dict:
        """(supervised + 0.5 perturbed + 0.25 strong + 0.25 strong) / 2, each term differentiated by itself."""
        query, truth = self.pose(labelled)
        query, truth = query.to(self.device, non_blocking=True), move(truth, self.device)
        views = self._views(unlabelled)
        terms = [
            lambda: self.loss(self.network(query), truth) / 2,
            lambda: PERTURBED / 2 * views.perturbed(),
            lambda: STRONG / 2 * views.strong(),
            lambda: STRONG / 2 * views.strong(),
        ]
        values = self.backward_in_turn(terms)
        return {"loss": np.array(sum(values)), "unsupervised loss": sum(values[1:]), ACCEPTED: views.accepted}

    def _may_turn(self) -> bool:
        """Not where sides matter or where the plane of the last two axes has voxels of unequal sides."""
        *_, height, width = self.configuration_manager.spacing
        return self.mirroring and bool(np.isclose(height, width))

    def _views(self, unlabelled: dict) -> Views:
        images, inside = unlabelled["data"], unlabelled["target"] >= 0
        both = torch.cat((images, inside.to(images.dtype)), 1).to(self.device, non_blocking=True)
        both = turned(both) if self._may_turn() else both
        targets = np.stack([self.targets[str(key)] for key in unlabelled["keys"][: len(both) // 2]])
        asked = torch.from_numpy(targets).to(self.device)
        believed = threshold(self.progress)
        given = Unlabelled(both[:, :-1], both[:, -1] > 0, self.possible(unlabelled["keys"]))
        with torch.no_grad(), self.precision():
            return Views(self.network, given, asked, believed)
