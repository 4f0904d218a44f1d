"""Diffusion of label maps, by a network that predicts the map (Ho et al., NeurIPS 2020; DDIM: Song et al., ICLR 2021).

Axis letters: **B** sample, **C** classes, ***S** space.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

STEPS = 1000
BETAS = (1e-4, 0.02)  # variance of the noise that the first and the last step add
DDIM_STEPS = 10  # of a sampling, evenly spaced, both ends among them
ALPHAS_CUMPROD = torch.cumprod(1 - torch.linspace(*BETAS, STEPS, dtype=torch.float64), 0)  # share of the map's variance


def q_sample(
    clean: Float[Tensor, "B C *S"], step: Int[Tensor, " B"], noise: Float[Tensor, "B C *S"]
) -> Float[Tensor, "B C *S"]:
    """Add the noise of a step of the diffusion (0..999) to maps, with a step for each sample."""
    alpha_bar = ALPHAS_CUMPROD.float().to(clean.device)[step].view(-1, *(1,) * (clean.ndim - 1))
    return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def ddim_steps(number: int = DDIM_STEPS) -> list[int]:
    """Return the steps of a sampling, last first."""
    return torch.linspace(STEPS - 1, 0, number, dtype=torch.float64).round().int().tolist()


def ddim_sample(
    predict: Callable[[Float[Tensor, "B C *S"], Int[Tensor, " B"]], Float[Tensor, "B C *S"]],
    noise: Float[Tensor, "B C *S"],
) -> Float[Tensor, "B C *S"]:
    """Sample a map in [-1, 1] from noise, deterministically after that; `predict` estimates the clean map."""
    x, clean, steps = noise, noise, ddim_steps()
    alphas = [*(ALPHAS_CUMPROD[step].item() for step in steps), 1.0]
    for step, (alpha_bar, alpha_bar_prev) in zip(steps, pairwise(alphas), strict=True):
        clean = predict(x, torch.full((len(x),), step, device=x.device)).float().clamp(-1, 1)
        guessed = (x / alpha_bar**0.5 - clean) / (1 / alpha_bar - 1) ** 0.5
        x = alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev) ** 0.5 * guessed
    return clean
