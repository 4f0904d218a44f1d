"""Whether the diffusion has a vote on pseudo-labels: while it is right on annotated cases.

Axis letters: **C** classes, background first.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEPS_BETWEEN = 25  # training steps from one look at annotated cases to the next
KEPT = 0.8  # of the counts at each look
RIGHT = 0.5  # mean Dice from which it is right more often than not


class VotingRight(nn.Module):
    """Moving average of the hits and errors of maps sampled for annotated images, in a buffer for checkpoints."""

    counts: Tensor

    def __init__(self, classes: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(3, classes))

    @torch.no_grad()
    def update(self, counts: Float[Tensor, "3 C"]) -> None:
        """Add the true positives, false positives and false negatives of a batch."""
        self.counts.lerp_(counts.float(), 1 - KEPT)

    def granted(self) -> bool:
        """Return whether the mean Dice of the labels that were present or predicted is above one half."""
        true, false, missed = self.counts[:, 1:]
        mass = 2 * true + false + missed
        seen = mass > 0
        return bool(seen.any() and (2 * true[seen] / mass[seen]).mean() > RIGHT)
