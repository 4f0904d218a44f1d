"""Marginalise labels that exclude each other: those not annotated count as background (Fang & Yan, IEEE TMI 2020).

Axis letters: **B** sample, **K** labels, all queried in order, **C** = K + 1 classes, background first, ***S** space.
Logits are [B,K,*S] against background, whose logit is 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_conemos.records import Truth


def class_log_probabilities(logits: Float[Tensor, "B K *S"]) -> Float[Tensor, "B C *S"]:
    """Return log p of background and of every label, in single precision."""
    return torch.log_softmax(torch.cat((torch.zeros_like(logits[:, :1]), logits), 1).float(), 1)


def marginalised_log_probabilities(
    logits: Float[Tensor, "B K *S"], known: Bool[Tensor, "B K"]
) -> Float[Tensor, "B C *S"]:
    """Return log p of background marginalised with all unknown labels, then of each known label (unknown: p = 0)."""
    log_p = class_log_probabilities(logits)
    own = known.view(*known.shape, *(1,) * (logits.ndim - 2))
    apart = torch.cat((torch.zeros_like(own[:, :1]), own), 1)
    background = torch.logsumexp(log_p.masked_fill(apart, -math.inf), 1, keepdim=True)
    return torch.cat((background, log_p[:, 1:].masked_fill(~own, -math.inf)), 1)


def shown_labels(truth: Truth) -> Bool[Tensor, "B K *S"]:
    """Return the mask of each known label."""
    return truth.onehot() & truth.known.view(*truth.known.shape, *(1,) * (truth.target.ndim - 2))


def known_classes(truth: Truth) -> Int[Tensor, " B *S"]:
    """Return the class of each voxel among background and the known labels."""
    labels = truth.known.shape[1]
    target = truth.target.flatten(1).long().clamp_max(labels + 1)  # the ignore label lies above the others
    shown = F.pad(truth.known, (1, 1)).gather(1, target)
    return (target * shown).view_as(truth.target[:, 0])


def counted_here(truth: Truth, logits: Float[Tensor, "B K *S"]) -> Bool[Tensor, "B 1 *S"]:
    """Mark the voxels of samples in which something is annotated, outside the ignore label."""
    annotated = truth.known.any(1).view(-1, *(1,) * (logits.ndim - 1))
    counted = annotated if truth.valid is None else annotated & truth.valid
    return counted.expand_as(logits[:, :1])
