"""How hard each class is to learn, as a weight (A&D: Wang & Li, NeurIPS 2023).

Axis letters: **C** classes, background first.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

MEMORY = 50  # window of the moving averages, in updates
EXPONENT = 1 / 5
EPS = 1e-8
LARGEST_RATIO = 3.0  # of the weights of two classes, where they are capped


class ClassDifficulty(nn.Module):
    """Moving averages of the progress of each class, in buffers, so that checkpoints carry them.

    A class weighs more the lower its Dice is and the more its Dice falls after having risen.
    """

    last: Tensor
    learnt: Tensor
    forgotten: Tensor
    lacking: Tensor

    def __init__(self, classes: int):
        super().__init__()
        self.register_buffer("last", torch.full((classes,), EPS))
        self.register_buffer("learnt", torch.zeros(classes))
        self.register_buffer("forgotten", torch.zeros(classes))
        self.register_buffer("lacking", torch.ones(classes))

    @torch.no_grad()
    def update(self, counts: Float[Tensor, "3 C"]) -> Float[Tensor, " C"]:
        """Return the weights after a batch with these true positives, false positives and false negatives.

        The state of a class that was neither present nor predicted stays (the released code sets its Dice to one half).
        """
        true, false, missed = counts.float()
        dice = (2 * true + EPS) / (2 * true + false + missed + 2 * EPS)
        change = dice - self.last
        amount = change * torch.log(dice / self.last)
        seen = true + false + missed > 0
        self._average(self.learnt, torch.where(change > 0, amount, 0), seen)
        self._average(self.forgotten, torch.where(change > 0, 0, amount), seen)
        self._average(self.lacking, 1 - dice, seen)
        self.last.copy_(torch.where(seen, dice, self.last))
        return self.weights()

    def weights(self) -> Float[Tensor, " C"]:
        """Return the weights, not normalised: about 1.03 C for a class that is never found."""
        return len(self.last) * ((self.forgotten + EPS) / (self.learnt + EPS)) ** EXPONENT * self.lacking

    @staticmethod
    def _average(state: Tensor, value: Tensor, seen: Tensor) -> None:
        state.copy_(torch.where(seen, state + (value - state) / MEMORY, state))


def capped(weights: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Raise the smallest weights, background's as a rule, to a third of the largest.

    Uncapped, labels weigh 14 to 30 times as much as background at the end of a training, and are predicted too large.
    """
    return weights.clamp_min(weights.max() / LARGEST_RATIO)
