"""Our own: a masked multi-head that fills in what is not annotated while it trains.

In a case that is annotated for some labels, the others are unlabelled data. A moving average of the network (mean
teacher: Tarvainen & Valpola, NeurIPS 2017) answers them, and its confident voxels join the annotated ones in the loss.
Axis letters: **B** sample, **Q** queried labels, **K** labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import Field
from torch import Tensor, nn

from nnunetv2_conemos.losses.masked import MaskedDiceBCE, counted_voxels
from nnunetv2_conemos.losses.pair_sums import pair_sums
from nnunetv2_conemos.networks.multihead import MultiHeadUNet
from nnunetv2_conemos.networks.spec import MethodOptions, method_options
from nnunetv2_conemos.records import Query, Truth, fields_to, move
from nnunetv2_conemos.training.method import Method
from nnunetv2_conemos.training.sampling import Pairs
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

TEACHER_DECAY = 0.99  # of the moving average, which also is what predicts


class SelfCompletingOptions(MethodOptions):
    """Options of a plans configuration under the key `conemos`.

    `weight`: of voxels that the teacher answers, relative to annotated ones; 0 leaves them out. `start`: share of the
    training before it answers any; `ramp`: share after that over which the weight rises. `threshold`: the probability
    from which it is confident that a label is there or, from 1 minus that, that it is not.
    """

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    start: float = Field(default=0.3, ge=0, lt=1)
    ramp: float = Field(default=0.2, gt=0, le=1)
    threshold: float = Field(default=0.8, gt=0.5, lt=1)

    def weight_at(self, progress: float) -> float:
        """Return the weight of the teacher's voxels at a share of the training."""
        return self.weight * min(max(progress - self.start, 0) / self.ramp, 1)


class Completed(NamedTuple):
    """Ground truth at one resolution, and what the teacher adds to it.

    `present` [B,Q,*S] boolean: where it says that a label is; `weight` [B,Q,*S] float: of each voxel that it answers, 0
    elsewhere and for everything annotated.
    """

    truth: Truth
    present: Tensor
    weight: Tensor

    def to(self, *args: Any, **kwargs: Any) -> Completed:
        return Completed._make(fields_to(self, *args, **kwargs))


class CompletedDiceBCE(MaskedDiceBCE):
    """`MaskedDiceBCE`, in which voxels that the teacher answers count with their weight, as if annotated."""

    def forward(self, logits: Float[Tensor, "B Q *S"], truth: Truth | Completed) -> Float[Tensor, ""]:
        if isinstance(truth, Truth):
            return super().forward(logits, truth)
        annotated, present, weight = truth
        known = counted_voxels(annotated).expand_as(logits)
        target = torch.where(known, annotated.onehot(), present)
        every = annotated._replace(known=annotated.labels > 0)
        return self.of_sums(pair_sums(logits, target, known + weight), every)


class Relations(NamedTuple):
    """What is known of pairs of labels, boolean [K,K]: the first lies within the second, or they never overlap.

    Without regions no two labels overlap.
    """

    within: Tensor
    apart: Tensor

    @classmethod
    def of_values(cls, values: Sequence[Sequence[int]]) -> Relations:
        """Return the relations of labels from the values of their voxels."""
        sets = [frozenset(one) for one in values]
        within = [[a < b for b in sets] for a in sets]
        apart = [[a.isdisjoint(b) for b in sets] for a in sets]
        return cls(torch.tensor(within), torch.tensor(apart))


def contradictions(truth: Truth, relations: Relations) -> tuple[Bool[Tensor, "B Q *S"], Bool[Tensor, "B Q *S"]]:
    """Return where annotations rule out that a queried label is there, and where they rule out that it is not.

    It is not there where a label that it never overlaps is, nor outside a region that it lies within; it is there where
    a region within it is. Every sample queries the same labels.
    """
    order = truth.labels[0] - 1
    within, apart = (table[order][:, order].float() for table in relations)  # [Q,Q]
    known = truth.known.view(*truth.known.shape, *(1,) * (truth.target.ndim - 2))
    here = (truth.onehot() & known).float()
    absent = (~truth.onehot() & known).float()

    def any_of(related: Tensor, masks: Tensor) -> Tensor:
        return torch.einsum("qk,bk...->bq...", related, masks) > 0

    return any_of(apart, here) | any_of(within, absent), any_of(within.T, here)


def completed(
    truth: Truth, teacher: Float[Tensor, "B Q *S"], relations: Relations, threshold: float, weight: float
) -> Completed:
    """Add the confident voxels of labels that are not annotated, unless they contradict what is.

    `teacher`: its logits, at any resolution; of labels that never overlap only the likeliest is taken as present.
    """
    size: Any = truth.target.shape[2:]
    logits = teacher.float() if teacher.shape[2:] == size else F.interpolate(teacher.float(), size, mode="nearest")
    bound = torch.logit(torch.tensor(threshold)).item()
    not_there, there = contradictions(truth, relations)
    order = truth.labels[0] - 1
    rivals = relations.apart[order][:, order]  # [Q,Q]
    present = (logits > bound) & ~not_there & ~beaten(logits, rivals)
    absent = (logits < -bound) & ~there
    space = (1,) * (truth.target.ndim - 2)
    open_ = (~truth.known & (truth.labels > 0)).view(*truth.labels.shape, *space)
    answered = (present | absent) & (open_ if truth.valid is None else open_ & truth.valid)
    return Completed(truth, present, answered * weight)


def beaten(logits: Float[Tensor, "B Q *S"], rivals: Bool[Tensor, "Q Q"]) -> Bool[Tensor, "B Q *S"]:
    """Return where a label that never overlaps with another is less likely than that."""
    found = torch.zeros_like(logits, dtype=torch.bool)
    for label, others in enumerate(rivals):
        if others.any():
            found[:, label] = logits[:, label] < logits[:, others].amax(1)
    return found


def completed_loss(configuration: ConfigurationManager, ddp: bool) -> nn.Module:
    """Build the loss; its options act where the ground truth is completed."""
    return CompletedDiceBCE(ddp)


class SelfCompletingTrainer(PartialLabelTrainer):
    """A masked multi-head whose moving average answers what is not annotated; labels sampled as for FiLM, all queried.

    The moving average is what validates, predicts, and is in the checkpoint beside the trained weights.
    """

    method = Method(
        network=MultiHeadUNet,
        sampler=Pairs(("all",)),
        loss=completed_loss,
        options=SelfCompletingOptions,
        averaging=TEACHER_DECAY,
    )

    @property
    def options(self) -> SelfCompletingOptions:
        return method_options(self.configuration_manager, SelfCompletingOptions)

    def to_query_and_truth(self, batch: dict) -> tuple[Query, Any]:
        """Convert a batch; in training, what the teacher is confident of completes its ground truth after `start`."""
        query, truth = super().to_query_and_truth(batch)
        weight = self.options.weight_at(self.progress)
        if not (self.network.training and weight):
            return query, truth
        query = query.to(self.device, non_blocking=True)
        truth = move(truth, self.device)
        assert self.average is not None
        with torch.no_grad(), self.precision():
            output = self.average.model(query)
        teacher = output[0] if isinstance(output, list) else output
        relations = Relations._make(fields_to(Relations.of_values(self.table.labels.values), self.device))
        how = (relations, self.options.threshold, weight)
        if isinstance(truth, Truth):
            return query, completed(truth, teacher, *how)
        return query, [completed(scale, teacher, *how) for scale in truth]
