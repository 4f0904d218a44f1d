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

TRAINING = "conemos_training"  # in a checkpoint, beside the averaged weights: what training goes on with


class MovingAverage:
    """Exponential, with a decay of min(1 - 1/n, `largest`) at the n-th update; the first is a copy."""

    def __init__(self, network: nn.Module, largest: float):
        self.trained, self.largest, self.updates = network, largest, 0
        self.model = AveragedModel(network, multi_avg_fn=self._average).eval()

    def update(self) -> None:
        self.updates += 1
        self.model.update_parameters(self.trained)

    def _average(self, averages: Any, weights: Any, _: Tensor | int) -> None:
        decay = min(1 - 1 / self.updates, self.largest)
        torch._foreach_lerp_(averages, weights, 1 - decay)

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
        saved = torch.load(file, map_location="cpu", weights_only=False)
        torch.save({**saved, TRAINING: {"weights": self.trained.state_dict(), "updates": self.updates}}, file)

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint of `add_training`."""
        state = checkpoint[TRAINING]
        self.model.module.load_state_dict(checkpoint["network_weights"])
        self.trained.load_state_dict(state["weights"])
        self.updates = state["updates"]
        self.model.n_averaged.fill_(self.updates)
