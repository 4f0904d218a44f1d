"""A moving average of a network's weights, which is what is validated and saved while training goes on beside it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nnunetv2_conemos.datasets import write_aside

TRAINING = "conemos_training"  # in a checkpoint, beside the averaged weights: what training goes on with


class MovingAverage:
    """Exponential, with a decay of min(1 - 1/n, `largest`) at the n-th update after the first, which is a copy."""

    def __init__(self, network: nn.Module, largest: float):
        def update(average: Tensor, weight: Tensor, updates: Tensor | int) -> Tensor:
            decay = min(1 - 1 / (int(updates) + 1), largest)
            return average * decay + weight * (1 - decay)

        self.trained = network
        self.model = AveragedModel(network, avg_fn=update).eval()

    def update(self) -> None:
        self.model.update_parameters(self.trained)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the network that is trained holds the averaged weights."""
        own = copy.deepcopy(self.trained.state_dict())
        self.trained.load_state_dict(self.model.module.state_dict())
        try:
            yield
        finally:
            self.trained.load_state_dict(own)

    def add_training(self, file: Path) -> None:
        """Add to a checkpoint, saved `in_place`, what training goes on with."""
        state = {"weights": self.trained.state_dict(), "updates": self.model.n_averaged.item()}
        saved = torch.load(file, map_location="cpu", weights_only=False)
        write_aside(file, lambda aside: torch.save({**saved, TRAINING: state}, aside))

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint of `add_training`."""
        self.model.module.load_state_dict(checkpoint["network_weights"])
        self.model.n_averaged.fill_(checkpoint[TRAINING]["updates"])
        self.trained.load_state_dict(checkpoint[TRAINING]["weights"])
