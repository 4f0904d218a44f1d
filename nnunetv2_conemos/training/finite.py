"""Stop a training at a loss that is not finite, and say in which cases it arose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_conemos.errors import DivergedError, shorten
from nnunetv2_conemos.training.sampling import SEPARATOR
from nnunetv2_conemos.training.streams import finish


class FiniteLossTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which counts the steps of an epoch and stops before it saves what a loss of NaN left behind.

    Gradients are not looked at: in mixed precision, the scaler skips steps with infinite ones.
    """

    network: Any
    steps_in_epoch = 0

    @property
    def progress(self) -> float:
        """The share of the training that is completed."""
        return (self.current_epoch + self.steps_in_epoch / self.num_iterations_per_epoch) / self.num_epochs

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps_in_epoch = 0

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self.steps_in_epoch = 0

    def run_training(self) -> None:
        try:
            super().run_training()
        except DivergedError:  # loaders that are left running would bury its message under theirs
            for loader in (self.dataloader_train, self.dataloader_val):
                finish(loader)
            raise

    def checked(self, report: dict[str, Any], *batches: Mapping[str, Any]) -> dict[str, Any]:
        """Return the numbers of a step on these batches; raises DivergedError where its loss is not finite."""
        if not np.isfinite(report["loss"]).all():
            phase = "training" if self.network.training else "validation"
            steps = self.num_iterations_per_epoch if self.network.training else self.num_val_iterations_per_epoch
            where = f"{type(self).__name__}, epoch {self.current_epoch}, {phase} step {self.steps_in_epoch} of {steps}"
            message = "\n".join(describe(where, report, batches))
            self.print_to_log_file(message, also_print_to_console=False)
            raise DivergedError(message)
        self.steps_in_epoch += 1
        return report


def describe(where: str, report: Mapping[str, Any], batches: tuple[Mapping[str, Any], ...]) -> Iterator[str]:
    """Yield what is not finite, the cases of the step, and what to do."""
    values = {name: np.asarray(value) for name, value in report.items() if name.endswith("loss")}
    wrong = [f"{name} {value.mean():g}" for name, value in values.items() if not np.isfinite(value).all()]
    yield f"{where}, both counted from 0: expected a finite loss, found {shorten(wrong)}."
    yield f"Cases: {shorten(dict.fromkeys(case for batch in batches for case in cases_of(batch)), 32)}."
    broken: dict[str, int] = {}
    for batch in batches:
        for case, image in zip(cases_of(batch), batch.get("data", ()), strict=True):
            if number := int((~torch.isfinite(image)).sum()):
                broken[case] = broken.get(case, 0) + number
    if broken:
        found = (f"'{case}' ({number} values of its patches)" for case, number in broken.items())
        yield f"The image is NaN or infinite in {shorten(found)}."
        yield "Find such voxels with `conemos check`, correct the images and preprocess again."
    else:
        yield (
            "Their images are finite, so the training diverged. The last checkpoint is from before that: go on from it "
            "with --c. If it happens again, look at these cases, or train an Adam1en3 variant with its lower rate."
        )


def cases_of(batch: Mapping[str, Any]) -> list[str]:
    """Return the case of each sample: what comes first in an identifier."""
    return [str(key).split(SEPARATOR)[0] for key in batch.get("keys", ())]
