"""Hermes: labels and modality are learned priors that meet the image by attention (Gao et al., CVPR 2024)."""

from __future__ import annotations

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from timm.optim.lamb import Lamb

from nnunetv2_conemos.methods.hermes.backbone import published_unet
from nnunetv2_conemos.methods.hermes.loss import AdaptiveTverskyBCE
from nnunetv2_conemos.methods.hermes.network import HermesOptions, HermesUNet
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters
from nnunetv2_conemos.training.plans_facts import (
    chosen_modality,
    has_background_head,
    known_modalities,
    label_groups,
    method_options,
    output_labels_of,
)
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

WARM_UP = 5  # epochs, in trainings of 200 and more; in shorter ones, their fortieth part
RISE = 2.718  # base of the warm-up, as published


class WarmUpPolyLR(PolyLRScheduler):
    """nnU-Net's polynomial decay after an exponential rise: lr * RISE ** (10 (epoch / WARM_UP - 1))."""

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step)
        warm_up = min(WARM_UP, self.max_steps // 40)
        if current_step is not None and 0 <= current_step <= warm_up and warm_up:
            rate = self.initial_lr * RISE ** (10 * (current_step / warm_up - 1))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self._last_lr = [rate] * len(self.optimizer.param_groups)


LEARNING_RATE = 2e-3


def hermes_unet(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> HermesUNet:
    background, options = has_background_head(plans), method_options(configuration, HermesOptions)
    num_labels = heads - background
    if options.backbone == "planned":
        unet = planned_unet(configuration, channels, 1, deep_supervision)
    else:
        unet = published_unet(configuration.patch_size, channels)
    return HermesUNet(
        unet,
        num_labels,
        background,
        groups=label_groups(plans, num_labels),
        output_labels=output_labels_of(plans, num_labels),
        num_modalities=len(known_modalities(plans)),
        modality=chosen_modality(plans),
        options=options,
    )


def lamb(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser | None:
    """LAMB (You et al., ICLR 2020) with warm-up, unless the configuration wants nnU-Net's optimiser."""
    if method_options(configuration, HermesOptions).optimiser != "LAMB":
        return None
    optimiser = Lamb(parameters, LEARNING_RATE, betas=(0.9, 0.999), eps=1e-5, weight_decay=1e-5, max_grad_norm=1.0)
    return optimiser, WarmUpPolyLR(optimiser, LEARNING_RATE, epochs)


class HermesTrainer(PartialLabelTrainer):
    """All annotated labels of a case and its modality as tokens; LAMB, averaged weights, datasets equally often.

    A third of the samples is centred on foreground, as in nnU-Net. There is no deep supervision.
    """

    method = Method(
        network=hermes_unet,
        sampler=Cases(power=0.0),
        loss=AdaptiveTverskyBCE,
        modalities=True,
        optimiser=lamb,
        averaging=0.99,
    )
    settings = {"enable_deep_supervision": False, "oversample_foreground_percent": 0.33}  # noqa: RUF012
