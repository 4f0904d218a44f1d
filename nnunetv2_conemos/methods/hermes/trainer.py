"""Hermes: labels and modality as learnt priors, fused with the image by attention (Gao et al., CVPR 2024)."""

from __future__ import annotations

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from timm.optim.lamb import Lamb

from nnunetv2_conemos.methods.hermes.loss import AdaptiveTverskyBCE
from nnunetv2_conemos.methods.hermes.network import HermesOptions, HermesUNet
from nnunetv2_conemos.networks.spec import method_options
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

LEARNING_RATE = 2e-3
WARM_UP = 5  # epochs, in trainings of 200 and more; in shorter ones, a fortieth of the epochs
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


def lamb(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser | None:
    """Build LAMB (You et al., ICLR 2020) with warm-up; None where the configuration names nnU-Net's optimiser."""
    if method_options(configuration, HermesOptions).optimiser != "LAMB":
        return None
    optimiser = Lamb(parameters, LEARNING_RATE, betas=(0.9, 0.999), eps=1e-5, weight_decay=1e-5, max_grad_norm=1.0)
    return optimiser, WarmUpPolyLR(optimiser, LEARNING_RATE, epochs)


class HermesTrainer(PartialLabelTrainer):
    """All annotated labels of a case and its modality as tokens; LAMB, EMA of the weights, datasets equally often.

    A third of the samples is centred on foreground, as in nnU-Net. There is no deep supervision.
    """

    method = Method(
        network=HermesUNet,
        sampler=Cases(power=0.0),
        loss=lambda configuration, ddp: AdaptiveTverskyBCE(),
        options=HermesOptions,
        modalities=True,
        optimiser=lamb,
        averaging=0.99,
    )
    settings = {"enable_deep_supervision": False, "oversample_foreground_percent": 0.33}  # noqa: RUF012
