"""UniMOS: completely, partially and not annotated cases together (PIPO-FAN: Fang & Yan, TMI 2020; UniMatch)."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import BaseModel, ConfigDict, Field

from nnunetv2_conemos.methods.unimos.augment import turned
from nnunetv2_conemos.methods.unimos.loss import TargetAdaptiveLoss
from nnunetv2_conemos.methods.unimos.pseudo_labels import Unlabelled, Views, targets_of, threshold
from nnunetv2_conemos.methods.unimos.pyramid import PlannedScales, Pyramid
from nnunetv2_conemos.methods.unimos.scale_fusion import FusedScalesUNet
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.records import move
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters
from nnunetv2_conemos.training.plans_facts import method_options, output_labels_of
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.semi_supervised import SemiSupervisedTrainer

DECAY, STEPS = 0.99, 2500 / 40  # factor of each step down, and how many there are in a training, as published


class StepwiseDecayLR(PolyLRScheduler):
    """Falls by equal factors, spread over the training: lr * DECAY ** ceil(STEPS * epoch / epochs)."""

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step)
        rate = self.initial_lr * DECAY ** ceil(STEPS * max(current_step or 0, 0) / self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate] * len(self.optimizer.param_groups)


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
    return FusedScalesUNet(network, output_labels_of(plans, heads - 1), options.perturb == "features")


def rmsprop(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser | None:
    """The published optimiser and its schedule, stretched to the length of the training; None for nnU-Net's."""
    if method_options(configuration, UniMOSOptions).optimiser != "RMSprop":
        return None
    optimiser = torch.optim.RMSprop(parameters, lr=LEARNING_RATE, momentum=0.9)
    return optimiser, StepwiseDecayLR(optimiser, LEARNING_RATE, epochs)


class UniMOSTrainer(SemiSupervisedTrainer):
    """Target adaptive loss on annotated cases, pseudo-labels and consistency of views on the others; no regions."""

    method = Method(
        network=fused_unet, sampler=Cases(every=True), loss=TargetAdaptiveLoss, regions=False, optimiser=rmsprop
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
        query, truth = self.to_query_and_truth(labelled)
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
        queried = torch.from_numpy(targets).to(self.device)
        believed = threshold(self.progress)
        given = Unlabelled(both[:, :-1], both[:, -1] > 0, self.possible(unlabelled["keys"]))
        with torch.no_grad(), self.precision():
            return Views(self.network, given, queried, believed)
