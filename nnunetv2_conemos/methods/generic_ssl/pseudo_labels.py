"""Label maps as input of a diffusion, and pseudo-labels of a diffusion and a classifier (A&D).

A&D: Wang & Li, NeurIPS 2023. Axis letters: **B** sample, **K** labels, all queried in order, **C** = K + 1 classes with
background first, ***S** space.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_conemos.losses.marginalised import counted_here, known_classes, marginalised_log_probabilities
from nnunetv2_conemos.records import Truth

SIGMA = 1.0  # of the smoothing, in voxels


def clean_maps(truth: Truth) -> Float[Tensor, "B C *S"]:
    """Return 1 for the class of a voxel and -1 for the others; 0 where that is not known.

    Not known are labels that are not annotated, background where it may be one of them, and ignored voxels.
    """
    classes, space = known_classes(truth), (1,) * (truth.target.ndim - 2)
    maps = 2 * F.one_hot(classes, truth.known.shape[1] + 1).movedim(-1, 1).float() - 1
    labels = truth.known.view(*truth.known.shape, *space)
    background = truth.known.all(1).view(-1, 1, *space) | (classes > 0)[:, None]
    known = torch.cat((background, labels.expand(-1, -1, *classes.shape[1:])), 1)
    return maps * (known if truth.valid is None else known & truth.valid)


def class_counts(logits: Float[Tensor, "B K *S"], truth: Truth) -> Float[Tensor, "3 C"]:
    """Count true positives, false positives and false negatives per class, in the samples annotated for it."""
    classes = truth.known.shape[1] + 1
    found = marginalised_log_probabilities(logits.detach(), truth.known).argmax(1)
    sample = torch.arange(len(found), device=found.device).view(-1, *(1,) * (found.ndim - 1))
    pairs = (sample * classes + known_classes(truth)) * classes + found
    counted = counted_here(truth, logits)[:, 0]
    tables = torch.bincount(pairs[counted], minlength=len(found) * classes**2).view(-1, classes, classes).float()
    known = torch.cat((truth.known.any(1, keepdim=True), truth.known), 1)
    true = tables.diagonal(dim1=1, dim2=2)
    return torch.stack([((part * known).sum(0)) for part in (true, tables.sum(1) - true, tables.sum(2) - true)])


def pseudo_labels(
    maps: Float[Tensor, "B C *S"] | None,
    logits: Float[Tensor, "B C *S"],
    supervised: Bool[Tensor, " K"],
    possible: Bool[Tensor, "B K"],
) -> Int[Tensor, " B *S"]:
    """Return the class with the most votes: of a sampled map, smoothed after Gumbel noise, and of a classifier.

    Without a map, the classifier alone decides.
    Labels never annotated (not in `supervised`) count as background; votes for those that a case cannot show (not in
    `possible`) do not count.
    """
    space = (1,) * (logits.ndim - 2)
    votes = torch.softmax(logits.float(), 1)
    if maps is not None:
        votes = votes + smoothed(F.gumbel_softmax(maps.float(), tau=1, dim=1))
    labels = votes[:, 1:] * possible.view(*possible.shape, *space)
    never_annotated = (labels * ~supervised.view(1, -1, *space)).sum(1, keepdim=True)
    return torch.cat((votes[:, :1] + never_annotated, labels * supervised.view(1, -1, *space)), 1).argmax(1)


def smoothed(maps: Float[Tensor, "B C *S"]) -> Float[Tensor, "B C *S"]:
    """Filter each channel with a Gaussian of three voxels per side, padded with 0."""
    dim, channels = maps.ndim - 2, maps.shape[1]
    line = torch.softmax(torch.tensor([-0.5, 0.0, -0.5], device=maps.device) / SIGMA**2, 0)
    kernel = line
    for _ in range(dim - 1):
        kernel = kernel[..., None] * line
    convolve = {2: F.conv2d, 3: F.conv3d}[dim]
    return convolve(maps, kernel.expand(channels, 1, *kernel.shape), padding=1, groups=channels)


def largest_vote(classes: int) -> float:
    """Return the highest probability that a softmax over a map in [-1, 1] can give."""
    return math.e**2 / (math.e**2 + classes - 1)
