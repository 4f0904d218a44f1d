"""ConditionalFiLMTrainer with one thing changed, for `conemos benchmark` (see ablation.yaml beside this folder).

Put this folder into `nnUNet_extTrainer`, beside what `conemos env` names. What options of the plans can say (placement
of FiLM, number of modulated layers) needs no trainer of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.losses.masked import MaskedDiceBCE, counted_voxels
from nnunetv2_conemos.losses.pair_sums import PairSums
from nnunetv2_conemos.methods import ConditionalFiLMTrainer, variants
from nnunetv2_conemos.records import Truth
from nnunetv2_conemos.training.method import without_options
from nnunetv2_conemos.training.sampling import SEPARATOR, Pairs, Sample, annotated_labels

CONDITIONAL = ConditionalFiLMTrainer.method


class PerSampleDiceBCE(MaskedDiceBCE):
    """The Dice of each sample by itself, empty targets included."""

    def _dice(self, sums: PairSums, truth: Truth) -> Tensor:
        pairs = (sums.counted > 0).float()
        dice = (2 * sums.overlap + self.smooth) / (sums.predicted + sums.present + self.smooth)
        return -(dice * pairs).sum() / pairs.sum().clamp_min(1)


class KnownNegatives(nn.Module):
    """MaskedDiceBCE, and BCE where a label that is not annotated cannot be: on voxels of the labels that are."""

    def __init__(self, ddp: bool = False):
        super().__init__()
        self.known = MaskedDiceBCE(ddp)

    def forward(self, logits: Tensor, truth: Truth) -> Tensor:
        elsewhere = (
            (truth.target > 0)
            & ~counted_voxels(truth._replace(valid=None))
            & (truth.labels > 0).view(*truth.labels.shape, *(1,) * (logits.ndim - 2))
        )
        elsewhere = (elsewhere if truth.valid is None else elsewhere & truth.valid).expand_as(logits).float()
        per_voxel = F.binary_cross_entropy_with_logits(
            logits.float(), torch.zeros_like(logits.float()), reduction="none"
        )
        negatives = (per_voxel * elsewhere).sum() / elsewhere.sum().clamp_min(1)
        return self.known(logits, truth) + negatives


@dataclass(frozen=True)
class PairsAndNegatives(Pairs):
    """One draw in four queries a label that the case is not annotated for."""

    def identifiers(self, table: SourceTable, cases: Sequence[str], seed: int = 12345) -> np.ndarray:
        positive = super().identifiers(table, cases, seed)
        annotated = [case for case in cases if table.known(case).any() and not table.known(case).all()]
        negative = [
            f"{case}{SEPARATOR}{label + 1}{SEPARATOR}one"
            for case in annotated
            for label in np.flatnonzero(~table.known(case))
        ]
        if not negative:
            return positive
        return np.concatenate((positive, np.random.default_rng(seed).choice(negative, len(positive) // 3)))

    def parse(self, identifier: str, table: SourceTable) -> Sample:
        drawn = super().parse(identifier, table)
        known = annotated_labels(drawn.case, table)
        return drawn if drawn.queried[0] in known else drawn._replace(centred=known)


class PerSampleDiceTrainer(ConditionalFiLMTrainer):
    """Dice of each sample instead of each label."""

    method = replace(CONDITIONAL, loss=without_options(PerSampleDiceBCE))


class ThirdOfForegroundTrainer(ConditionalFiLMTrainer):
    """A third of the samples is centred on the queried label, as in nnU-Net, instead of two thirds."""

    method = CONDITIONAL
    settings = {"oversample_foreground_percent": 0.33}  # noqa: RUF012


class NinthOfBackgroundTrainer(ConditionalFiLMTrainer):
    """Eight of nine samples are centred on the queried label."""

    method = CONDITIONAL
    settings = {"oversample_foreground_percent": 0.89}  # noqa: RUF012


class SeveralLabelsTrainer(ConditionalFiLMTrainer):
    """All annotated labels of a case are queried in each step, each in a pass of its own."""

    method = replace(CONDITIONAL, sampler=Pairs(("annotated",)))


class KnownNegativesTrainer(ConditionalFiLMTrainer):
    """Labels that are not annotated are queried too: where an annotated one is, they cannot be. No regions."""

    method = replace(CONDITIONAL, sampler=PairsAndNegatives(), loss=without_options(KnownNegatives), regions=False)


TRAINERS = [
    PerSampleDiceTrainer,
    ThirdOfForegroundTrainer,
    NinthOfBackgroundTrainer,
    SeveralLabelsTrainer,
    KnownNegativesTrainer,
]
for _trainer in TRAINERS:
    globals().update(variants(_trainer))
