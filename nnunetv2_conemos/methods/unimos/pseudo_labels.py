"""Pseudo-labels of unlabelled images and consistency of their views (UniMatch: Yang et al., CVPR 2023; UniMOS).

Axis letters: **B** sample, **M** input channel, **K** labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.losses.marginalised import marginalised_log_probabilities
from nnunetv2_conemos.methods.unimos.augment import cutmix, cutmix_boxes, photometric
from nnunetv2_conemos.methods.unimos.loss import nll, weighted_nll
from nnunetv2_conemos.methods.unimos.scale_fusion import Perturb
from nnunetv2_conemos.records import Query

THRESHOLDS = ((0.56, 0.9), (0.28, 0.8), (0.0, 0.7))  # (share of the training, lowest probability from then on)


def threshold(progress: float) -> float:
    """Return the threshold above which a pseudo-label is confident, at a share of the training."""
    return next(value for start, value in THRESHOLDS if progress >= start)


class PseudoLabels(NamedTuple):
    """The most likely class of each voxel, [B,*S] integer, and its probability, [B,*S] float."""

    label: Tensor
    confidence: Tensor


def pseudo_labels(
    logits: Float[Tensor, "B K *S"], queried: Bool[Tensor, "B K"], possible: Bool[Tensor, "B K"]
) -> PseudoLabels:
    """Choose among background and the queried labels, with all others counted as background; without a gradient.

    Labels that a case cannot show (not in `possible`) are left out.
    """
    ruled_out = ~possible.view(*possible.shape, *(1,) * (logits.ndim - 2))
    confidence, label = (
        marginalised_log_probabilities(logits.detach().masked_fill(ruled_out, -torch.inf), queried).exp().max(1)
    )
    return PseudoLabels(label, confidence)


def consistency(
    logits: Float[Tensor, "B K *S"],
    queried: Bool[Tensor, "B K"],
    label: Int[Tensor, " B *S"],
    confident: Bool[Tensor, " B *S"],
    weighted: bool = False,
) -> Float[Tensor, ""]:
    """Return the cross-entropy with confident pseudo-labels, divided by the number of all voxels.

    `weighted` by class, as published, it teaches labels that are too large once more.
    """
    log_p = marginalised_log_probabilities(logits, queried)
    per_voxel = weighted_nll(log_p, label)[0] if weighted else nll(log_p, label)
    return (per_voxel * confident).sum() / per_voxel.numel()


class Unlabelled(NamedTuple):
    """Unlabelled images [B,M,*S], with the voxels and labels that pseudo-labels may have.

    `inside` [B,*S]: neither padding nor the zeros around the body that nnU-Net crops, where nothing is pseudo-labelled;
    `possible` [B,K]: the labels that image tags do not rule out.
    """

    image: Tensor
    inside: Tensor
    possible: Tensor


class Consistency:
    """Losses between views of unlabelled images and their pseudo-labels.

    `unlabelled` holds the weak views and as many others, which CutMix mixes into the strong views; `queried` [B,K]: the
    labels that pseudo-labels may have; `threshold`: the probability from which they are confident; `weighted`: weigh
    classes, as published. Call `perturbed` before `strong`.
    """

    def __init__(
        self,
        network: Callable[[Query | Perturb], Any],
        unlabelled: Unlabelled,
        queried: Tensor,
        threshold: float,
        weighted: bool = False,
    ):
        self.network, self.queried, self.threshold, self.weighted = network, queried, threshold, weighted
        self.weak, self.mixed = (
            Unlabelled(*half) for half in zip(*(part.chunk(2) for part in unlabelled), strict=True)
        )
        self.every = torch.arange(1, queried.shape[1] + 1, device=queried.device).expand(len(queried), -1)
        self.of_mixed = self._pseudo_labels(network(Query(self.mixed.image, self.every)), self.mixed)
        self.of_weak: PseudoLabels | None = None

    def perturbed(self) -> Float[Tensor, ""]:
        """Compare perturbed logits with the pseudo-labels of the plain ones, from one pass of the encoder."""
        plain, other = self.network(Perturb(self.weak.image))
        self.of_weak = self._pseudo_labels(plain, self.weak)
        return self._consistency(other, self.of_weak)

    def strong(self) -> Float[Tensor, ""]:
        """Compare a strong view, with a box of another image in it (CutMix), with the pseudo-labels of both images."""
        assert self.of_weak is not None
        image = self.weak.image
        box = cutmix_boxes(image.shape, image.device)
        pairs = zip(self.of_mixed, self.of_weak, strict=True)
        mixed = PseudoLabels(*(cutmix(box, other, own) for other, own in pairs))
        view = cutmix(box, photometric(self.mixed.image), photometric(image))
        return self._consistency(self.network(Query(view, self.every)), mixed)

    @property
    def confident_share(self) -> float:
        """The share of the voxels inside the weak views whose pseudo-label is confident."""
        assert self.of_weak is not None
        return ((self.of_weak.confidence >= self.threshold).sum() / self.weak.inside.sum().clamp_min(1)).item()

    def _pseudo_labels(self, logits: Tensor, of: Unlabelled) -> PseudoLabels:
        found = pseudo_labels(logits, self.queried, of.possible)
        return found._replace(confidence=found.confidence * of.inside)

    def _consistency(self, logits: Tensor, pseudo: PseudoLabels) -> Tensor:
        confident = pseudo.confidence >= self.threshold
        return consistency(logits, self.queried, pseudo.label, confident, self.weighted)


def targets_of(table: SourceTable, cases: Sequence[str], how: str) -> dict[str, np.ndarray]:
    """Return for each training case the labels, boolean [K], that its pseudo-labels may have if it is unlabelled.

    These are the labels annotated in any of the `cases` or, with `how` "dataset", in those of its own dataset.
    """
    everything = table.supervised(cases)
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(table.dataset_of(case) if how == "dataset" else "", []).append(case)
    supervised = {dataset: table.supervised(of_dataset) for dataset, of_dataset in members.items()}
    return {
        case: supervised[dataset] if supervised[dataset].any() else everything
        for dataset, of_dataset in members.items()
        for case in of_dataset
    }
