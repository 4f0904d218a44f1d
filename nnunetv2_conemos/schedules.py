"""Learning rates over the epochs of a training, in the way nnU-Net steps its own."""

from __future__ import annotations

from math import ceil

from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

WARM_UP = 5  # epochs, in trainings of 200 and more; in shorter ones, their fortieth part
RISE = 2.718  # base of the warm-up, as published
DECAY, STEPS = 0.99, 2500 / 40  # factor of each step down, and how many there are in a training, as published


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


class StepwiseDecayLR(PolyLRScheduler):
    """Falls by equal factors, spread over the training: lr * DECAY ** ceil(STEPS * epoch / epochs)."""

    def step(self, current_step: int | None = None) -> None:
        super().step(current_step)
        rate = self.initial_lr * DECAY ** ceil(STEPS * max(current_step or 0, 0) / self.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._last_lr = [rate] * len(self.optimizer.param_groups)
