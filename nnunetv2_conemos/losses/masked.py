"""Dice + BCE that counts what is annotated, and nothing else.

Axis letters: **B** sample, **Q** labels asked, **N** = B x Q pairs (over all processes), ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor, nn
from torch import distributed as dist

from nnunetv2_conemos.records import Truth


class MaskedDiceBCE(nn.Module):
    """nnU-Net's recipe for binary maps (soft Dice + BCE, equal weights) over the known (sample, label) pairs.

    The BCE is a mean over the valid voxels of every known pair. The Dice is pooled over the pairs of the batch that ask
    the same label, and skipped where their pooled target is empty: one sample at a time, an empty target rewards
    predicting nothing, and in 2D or for small organs most targets are empty. With everything known this is nnU-Net's
    `DC_and_BCE_loss` with batch Dice; with nothing known it is 0. With `ddp` both cover the samples of all processes.
    """

    def __init__(self, ddp: bool = False, smooth: float = 1e-5):
        super().__init__()
        self.ddp, self.smooth = ddp, smooth

    def forward(self, logits: Float[Tensor, "B Q *S"], truth: Truth) -> Float[Tensor, ""]:
        logits = logits.float()  # sums over a patch overflow half precision
        target = truth.onehot().float()
        counted = counted_voxels(truth).float().expand_as(logits)
        return self._bce(logits, target, counted) + self._dice(logits, target, counted, truth)

    def _bce(self, logits: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        per_voxel = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (per_voxel * counted).sum() / mean_of_processes(counted.sum(), self.ddp).clamp_min(1e-8)

    def _dice(self, logits: Tensor, target: Tensor, counted: Tensor, truth: Truth) -> Tensor:
        return -batch_dice(torch.sigmoid(logits) * counted, target * counted, truth, self.smooth, self.ddp)


def counted_voxels(truth: Truth) -> Bool[Tensor, "B Q *S"]:
    """Where the loss looks: known pairs, outside the ignore label. Broadcasts over space where nothing is ignored."""
    known = (truth.known & (truth.labels > 0)).view(*truth.labels.shape, *(1,) * (truth.target.ndim - 2))
    return known if truth.valid is None else known & truth.valid


def batch_dice(
    probability: Float[Tensor, "B Q *S"],
    target: Float[Tensor, "B Q *S"],
    truth: Truth,
    smooth: float,
    ddp: bool,
    skip_empty: bool = True,
    weight_of: Float[Tensor, " labels"] | None = None,
) -> Float[Tensor, ""]:
    """`pooled_dice` of the known pairs of a batch, with `ddp` of all processes; both maps are 0 where none counts."""
    masses = (probability * target, probability, target)
    sums = torch.stack([mass.flatten(2).sum(2).flatten() for mass in masses], dim=-1)  # [N,3]
    labels = (truth.labels * truth.known).flatten()  # 0: asks nothing
    if ddp:
        sums, labels = of_all_processes(sums), of_all_processes(labels)
    return pooled_dice(sums, labels, smooth, skip_empty, weight_of)


def mean_of_processes(weight: Float[Tensor, ""], ddp: bool) -> Float[Tensor, ""]:
    """The weight or, with `ddp`, its mean over the processes, whose gradients DDP averages: sums divided by it then add
    up to a mean over the samples of all.
    """
    if not ddp:
        return weight
    total = weight.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def of_all_processes(rows: Tensor) -> Tensor:
    """The rows of every process, one after the other, with zeros where a process has fewer than another."""
    most = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    missing = rows.new_zeros(int(most) - len(rows), *rows.shape[1:])
    return AllGatherGrad.apply(torch.cat((rows, missing))).flatten(0, 1)


def pooled_dice(
    sums: Float[Tensor, "N 3"],
    labels: Int[Tensor, " N"],
    smooth: float,
    skip_empty: bool = True,
    weight_of: Float[Tensor, " labels"] | None = None,
) -> Float[Tensor, ""]:
    """Mean soft Dice over the distinct labels > 0 whose pooled target is not empty; 0 where there is none.

    `sums` holds intersection, predicted and target mass of each pair. Without `skip_empty`, empty targets count too.
    `weight_of` (index: label, from 0) scales the Dice of each label; the mean still counts labels.
    """
    same = (labels[:, None] == labels[None]) & (labels > 0)
    # A matrix product would run in half precision under autocast, where 65,504 voxels are infinitely many.
    intersection, predicted, target = (same[..., None] * sums).sum(1).unbind(-1)
    dice = (2 * intersection + smooth) / (predicted + target + smooth).clamp_min(1e-8)
    pairs_of_label = same.sum(1).clamp_min(1)
    counts = labels > 0
    if skip_empty:
        counts &= target > 0
    weight = counts / pairs_of_label  # every label weighs 1, however many pairs ask it
    if weight_of is not None:
        dice = dice * weight_of[labels]
    return (dice * weight).sum() / weight.sum().clamp_min(1)


def likeliest_alone(logits: Float[Tensor, "B K *S"], untaught: Sequence[int]) -> Float[Tensor, "B K *S"]:
    """Logits of labels that exclude each other: at each voxel, only the likeliest that was taught can be positive."""
    answers = logits.clone()
    answers[:, [label - 1 for label in untaught]] = -torch.inf
    return torch.where(answers == answers.amax(1, keepdim=True), answers, -torch.inf)


@torch.no_grad()
def hard_counts(logits: Float[Tensor, "B Q *S"], truth: Truth, num_labels: int) -> Float[Tensor, "3 K"]:
    """True positives, false positives and false negatives per label over a batch, counting known pairs only."""
    counted = counted_voxels(truth)
    predicted, target = (logits > 0) & counted, truth.onehot() & counted
    space = tuple(range(2, logits.ndim))
    counts = [(predicted & target), (predicted & ~target), (~predicted & target)]
    sums = torch.stack([c.sum(space, dtype=torch.float32).flatten() for c in counts])
    per_label = sums.new_zeros(3, num_labels + 1)
    return per_label.index_add_(1, truth.labels.flatten(), sums)[:, 1:]
