"""UniMOS: learn from complete, partial and unlabelled cases together (PIPO-FAN: Fang & Yan, TMI 2020; UniMatch)."""

from __future__ import annotations

from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import Field, model_validator

from nnunetv2_conemos.methods.unimos.augment import turned
from nnunetv2_conemos.methods.unimos.loss import LOG_PRIOR, TargetAdaptiveLoss
from nnunetv2_conemos.methods.unimos.pseudo_labels import Consistency, Unlabelled, targets_of, threshold
from nnunetv2_conemos.methods.unimos.pyramid import PlannedScales, Pyramid
from nnunetv2_conemos.methods.unimos.scale_fusion import FusedScalesUNet
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec, method_options
from nnunetv2_conemos.records import move
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.semi_supervised import SemiSupervisedTrainer

LEARNING_RATE = 5e-4  # of RMSprop, as published
DECAY, STEPS = 0.99, 2500 / 40  # factor of each step down, and how many there are in a training, as published
PERTURBED, STRONG = 0.5, 0.25  # weights of the feature-perturbed and of each strong view
CONFIDENT_SHARE = "accepted pseudo-label voxels"  # the name of the curve in logs and checkpoints


class StepwiseDecayLR(PolyLRScheduler):
    """A decay in equal factors, spread over the training: lr * DECAY ** ceil(STEPS * epoch / epochs)."""

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step)
        rate = self.initial_lr * DECAY ** ceil(STEPS * max(current_step or 0, 0) / self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate] * len(self.optimizer.param_groups)


class UniMOSOptions(MethodOptions):
    """Options of a plans configuration under the key `conemos`.

    `network`: the published one with the widths and strides of the plans, or the planned U-Net, both with fused scales.
    `perturb`: drop channels of the logits of each scale (published) or of the features for the decoder (UniMatch).
    `targets`: the labels that pseudo-labels may have: all, or those annotated in other cases of the same `dataset`.
    `dice_weight`: of a Dice term beside the cross-entropy of annotated cases (`published`: 0).
    `published`: classes weigh in the term of unlabelled cases too, and neither prediction nor pseudo-labels are
    corrected for the weights.
    """

    earlier = {"network": "pyramid", "published": True}  # noqa: RUF012

    network: Literal["pyramid", "planned"] = "pyramid"
    perturb: Literal["logits", "features"] = "logits"
    targets: Literal["all", "dataset"] = "all"
    optimiser: Literal["nnU-Net", "RMSprop"] = "nnU-Net"
    published: bool = False
    dice_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        """Leave out the Dice term where the published method is wanted, unless its weight is named."""
        return {"dice_weight": 0.0, **given} if isinstance(given, dict) and given.get("published") else given

    @property
    def prior(self) -> float:
        """The logarithm of the odds by which the weights of the loss favour labels, where that is corrected."""
        return 0.0 if self.published else LOG_PRIOR


def fused_unet(spec: NetworkSpec) -> FusedScalesUNet:
    """Build the published pyramid in the size of the planned U-Net, or that U-Net, with fused scales."""
    options, classes = spec.options(UniMOSOptions), spec.num_labels + 1
    unet = spec.planned_unet(classes, deep_supervision=True)
    if options.network == "planned":
        network: torch.nn.Module = PlannedScales(unet, classes)
    else:
        encoder: Any = unet.encoder
        network = Pyramid(spec.num_input_channels, classes, encoder.output_channels, encoder.strides, encoder.conv_op)
    return FusedScalesUNet(spec, network, options.perturb == "features", options.prior)


def target_adaptive_loss(configuration: ConfigurationManager, ddp: bool) -> TargetAdaptiveLoss:
    """Build the loss with the options of the configuration."""
    options = method_options(configuration, UniMOSOptions)
    return TargetAdaptiveLoss(ddp, options.dice_weight, options.prior)


def rmsprop(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser | None:
    """Build the published optimiser and its schedule, stretched to the training; None for nnU-Net's."""
    if method_options(configuration, UniMOSOptions).optimiser != "RMSprop":
        return None
    optimiser = torch.optim.RMSprop(parameters, lr=LEARNING_RATE, momentum=0.9)
    return optimiser, StepwiseDecayLR(optimiser, LEARNING_RATE, epochs)


class UniMOSTrainer(SemiSupervisedTrainer):
    """Target adaptive loss on annotated cases, pseudo-labels and consistency of views on the others; no regions."""

    method = Method(
        network=fused_unet,
        sampler=Cases(every=True),
        loss=target_adaptive_loss,
        options=UniMOSOptions,
        regions=False,
        optimiser=rmsprop,
    )
    settings = {"enable_deep_supervision": False}  # noqa: RUF012
    unlabelled_per_sample = 2  # one of them is mixed into the other
    extras = ("unsupervised loss", CONFIDENT_SHARE)
    targets: dict[str, np.ndarray]  # training case -> boolean [K]: the labels that its pseudo-labels may have

    def get_dataloaders(self) -> tuple[Any, Any]:
        loaders = super().get_dataloaders()
        self.targets = targets_of(self.table, self.training_cases, self.options.targets)
        return loaders

    @property
    def options(self) -> UniMOSOptions:
        return method_options(self.configuration_manager, UniMOSOptions)

    def two_stream_step(self, labelled: dict, unlabelled: dict) -> dict:
        """Step on (supervised + 0.5 perturbed + 0.25 strong + 0.25 strong) / 2, each term differentiated in turn."""
        query, truth = self.to_query_and_truth(labelled)
        query, truth = query.to(self.device, non_blocking=True), move(truth, self.device)
        consistency = self._consistency(unlabelled)
        terms = [
            lambda: self.loss(self.network(query), truth) / 2,
            lambda: PERTURBED / 2 * consistency.perturbed(),
            lambda: STRONG / 2 * consistency.strong(),
            lambda: STRONG / 2 * consistency.strong(),
        ]
        values = self.backward_in_turn(terms)
        share = consistency.confident_share
        return {"loss": np.array(sum(values)), "unsupervised loss": sum(values[1:]), CONFIDENT_SHARE: share}

    def _may_turn(self) -> bool:
        """Return whether rotations by 90 degrees are allowed: not without mirroring, nor for in-plane anisotropy."""
        *_, height, width = self.configuration_manager.spacing
        return self.mirroring and bool(np.isclose(height, width))

    def _consistency(self, unlabelled: dict) -> Consistency:
        images, inside = unlabelled["data"], unlabelled["target"] >= 0
        both = torch.cat((images, inside.to(images.dtype)), 1).to(self.device, non_blocking=True)
        both = turned(both) if self._may_turn() else both
        targets = np.stack([self.targets[str(key)] for key in unlabelled["keys"][: len(both) // 2]])
        queried = torch.from_numpy(targets).to(self.device)
        views = Unlabelled(both[:, :-1], both[:, -1] > 0, self.possible(unlabelled["keys"]))
        with torch.no_grad(), self.precision():
            return Consistency(self.network, views, queried, threshold(self.progress), self.options.published)
