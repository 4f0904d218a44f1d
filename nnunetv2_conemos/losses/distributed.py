"""Sums and means over the samples of all processes (DDP)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import Tensor
from torch import distributed as dist


def mean_of_processes(weight: Float[Tensor, ""], ddp: bool) -> Float[Tensor, ""]:
    """Return a weight or, with `ddp`, its mean over the processes.

    DDP averages the gradients of the processes, so sums divided by this mean add up to a mean over all samples.
    """
    if not ddp:
        return weight
    total = weight.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def of_all_processes(rows: Tensor) -> Tensor:
    """Gather the rows of all processes, one process after the other, padded with zeros to equal numbers."""
    most = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    missing = rows.new_zeros(int(most) - len(rows), *rows.shape[1:])
    return AllGatherGrad.apply(torch.cat((rows, missing))).flatten(0, 1)
