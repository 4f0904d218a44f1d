"""Exponential moving average (EMA) of a network's weights, which is validated and saved instead of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.training.checkpoints import WholeCheckpoints, load
from nnunetv2_conemos.training.method import Method

TRAINING = "conemos_training"  # in a checkpoint, beside the averaged weights: the state from which training resumes


class MovingAverage:
    """EMA with a decay of min(1 - 1/n, `largest`) at the n-th update; the first update is a copy."""

    def __init__(self, network: nn.Module, largest: float):
        self.trained, self.largest, self.updates = network, largest, 0
        self.model = AveragedModel(network, multi_avg_fn=self._average).eval()

    def update(self) -> None:
        """Update the average after a training step."""
        self.updates += 1
        self.model.update_parameters(self.trained)

    def _average(self, averages: Any, weights: Any, _: Tensor | int) -> None:
        decay = min(1 - 1 / self.updates, self.largest)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Load the averaged weights into the trained network within the block."""
        own = copy.deepcopy(self.trained.state_dict())
        self.trained.load_state_dict(self.model.module.state_dict())
        try:
            yield
        finally:
            self.trained.load_state_dict(own)

    def add_training(self, file: Path) -> None:
        """Add the state from which training resumes to a checkpoint that was saved `in_place`."""
        saved = load(file)
        torch.save({**saved, TRAINING: {"weights": self.trained.state_dict(), "updates": self.updates}}, file)

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Resume from a checkpoint of `add_training`."""
        state = checkpoint.get(TRAINING)
        if state is None:
            raise SourceError(
                f"the checkpoint lacks `{TRAINING}`, from which a training with averaged weights continues. Start from "
                "it with `conemos adapt`, or train from scratch."
            )
        self.model.module.load_state_dict(checkpoint["network_weights"])
        self.trained.load_state_dict(state["weights"])
        self.updates = state["updates"]
        self.model.n_averaged.fill_(self.updates)


class AveragedTrainer(WholeCheckpoints):
    """nnU-Net's trainer, which validates and saves an EMA of the weights where its method has one."""

    method: ClassVar[Method]
    network: Any
    average: MovingAverage | None = None

    def initialize(self) -> None:
        super().initialize()
        if self.method.averaging is not None:
            self.average = MovingAverage(self.bare_network, self.method.averaging)

    @property
    def bare_network(self) -> Any:
        """The network without the wrappers of DDP and torch.compile."""
        network = self.network.module if self.is_ddp else self.network
        return getattr(network, "_orig_mod", network)

    def update_average(self) -> None:
        """Update the average, if there is one, after a training step."""
        if self.average:
            self.average.update()

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Load the averaged weights, if there are any, into the network within the block."""
        return self.average.in_place() if self.average else nullcontext()

    def write_checkpoint(self, file: Path) -> None:
        """Write a checkpoint as nnU-Net does; where there is an average, with averaged and with trained weights."""
        with self.averaged_weights():
            super().write_checkpoint(file)
        if self.average:
            self.average.add_training(file)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        if self.average:
            checkpoint = filename_or_checkpoint
            self.average.resume(load(Path(checkpoint)) if isinstance(checkpoint, str) else checkpoint)
