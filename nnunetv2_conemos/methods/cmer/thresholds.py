"""Choose, on label maps, the activation from which a voxel belongs to a label.

Axis letters: **C** cases, **T** thresholds, **M** input channel, **K** labels, **D** slices, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from jaxtyping import Bool, Float

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.methods.cmer.network import CAMNetworks

CANDIDATES = np.linspace(0.2, 0.8, 13)
DEFAULT = 0.5


def dice_by_threshold(
    activation: Float[np.ndarray, "*S"], truth: Bool[np.ndarray, "*S"], counted: Bool[np.ndarray, "*S"]
) -> Float[np.ndarray, " T"]:
    """Return the Dice of a case at each candidate, over the `counted` voxels; NaN where the label is absent."""
    activation, truth = activation[counted], truth[counted]
    found = [activation > threshold for threshold in CANDIDATES]
    if not truth.any():
        return np.full(len(CANDIDATES), np.nan)
    return np.array([2 * (f & truth).sum() / (f.sum() + truth.sum()) for f in found])


def best_threshold(dice: Float[np.ndarray, "C T"]) -> tuple[float, float] | None:
    """Return the candidate of best mean Dice over the cases that have the label, and that Dice; None without any."""
    there = dice[~np.isnan(dice).any(1)]
    if not len(there) or not there.any():
        return None
    means = there.mean(0)
    return float(CANDIDATES[means.argmax()]), float(means.max())


def choose_threshold(dice: Sequence[Float[np.ndarray, " T"]]) -> tuple[float, str]:
    """Return a threshold, given the Dice of each validation case at every candidate, and why it was chosen."""
    best = best_threshold(np.array(dice)) if dice else None
    if best:
        return best[0], f"Dice {best[1]:.3f}, chosen on {len(dice)} validation cases"
    return DEFAULT, "no candidate finds it in a label map" if dice else "no label map to choose on"


def dice_of_labels(
    activation: np.ndarray, target: np.ndarray, labels: LabelSpace, annotated: Sequence[int]
) -> dict[int, Float[np.ndarray, " T"]]:
    """Return the Dice at each candidate of the `annotated` columns, from activations [K,*S] and a label map [*S]."""
    counted = target != labels.ignore if labels.ignore is not None else np.ones_like(target, dtype=bool)
    return {k: dice_by_threshold(activation[k], np.isin(target, labels.values[k]), counted) for k in annotated}


@torch.no_grad()
def fused_volume(
    network: CAMNetworks, image: np.ndarray, patch: tuple[int, ...], at_once: int, device: torch.device
) -> np.ndarray:
    """Compute the fused activation [K,D,H,W] of an image [M,D,H,W], slice by slice in the size of the patch."""
    padded, inside = pad_nd_image(image, patch, return_slicer=True)
    slices = torch.from_numpy(padded).movedim(1, 0).split(at_once)
    found = torch.cat([network.fused(part.to(device)).cpu() for part in slices])
    return found.movedim(0, 1)[(slice(None), *inside[1:])].numpy()
