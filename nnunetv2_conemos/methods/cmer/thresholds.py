"""From which activation on a voxel belongs to a label: chosen on label maps.

Axis letters: **C** cases, **T** thresholds, **M** input channel, **K** labels, **D** slices, ***S** space.
"""

from __future__ import annotations

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from jaxtyping import Bool, Float

from nnunetv2_conemos.methods.cmer.network import CAMNetworks

CANDIDATES = np.linspace(0.2, 0.8, 13)
DEFAULT = 0.5


def dice_by_threshold(
    activation: Float[np.ndarray, "*S"], truth: Bool[np.ndarray, "*S"], counted: Bool[np.ndarray, "*S"]
) -> Float[np.ndarray, " T"]:
    """Dice of a case at each candidate, where voxels are `counted`; NaN where the label is not there."""
    activation, truth = activation[counted], truth[counted]
    found = [activation > threshold for threshold in CANDIDATES]
    if not truth.any():
        return np.full(len(CANDIDATES), np.nan)
    return np.array([2 * (f & truth).sum() / (f.sum() + truth.sum()) for f in found])


def best_threshold(dice: Float[np.ndarray, "C T"]) -> tuple[float, float] | None:
    """The candidate with the best mean Dice over the cases that have the label, and that Dice; None without any."""
    there = dice[~np.isnan(dice).any(1)]
    if not len(there) or not there.any():
        return None
    means = there.mean(0)
    return float(CANDIDATES[means.argmax()]), float(means.max())


@torch.no_grad()
def fused_volume(
    network: CAMNetworks, image: np.ndarray, patch: tuple[int, ...], at_once: int, device: torch.device
) -> np.ndarray:
    """Fused activation [K,D,H,W] of an image [M,D,H,W], slice by slice on the canvas of the patch, as predicted."""
    padded, inside = pad_nd_image(image, patch, return_slicer=True)
    slices = torch.from_numpy(padded).movedim(1, 0).split(at_once)
    found = torch.cat([network.fused(part.to(device)).cpu() for part in slices])
    return found.movedim(0, 1)[(slice(None), *inside[1:])].numpy()
