"""The scientific content of a trainer in one record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from nnunetv2_conemos.training.sampling import Sampler

Parameters = Iterable[nn.Parameter]
Optimiser = tuple[torch.optim.Optimizer, LRScheduler]


@dataclass(frozen=True)
class Method:
    """What makes a method: everything else is nnU-Net's or the frame's.

    `network(plans, configuration, input channels, heads, deep supervision)` builds the network: `forward(Query)`
    answers the labels asked, [B,Q,*S]; `forward(Tensor)` answers all `heads` as nnU-Net wants them.
    `ask` says what is drawn and asked. `loss(ddp)` builds the loss of (logits [B,Q,*S], Truth) at one resolution.
    `regions`: whether the method allows labels that overlap; `modalities`: whether it looks at the modality of a case;
    `tags`: whether it learns from image tags; `dimensions`: those of the configurations that it trains.
    `optimiser(parameters, configuration, epochs)` gives optimiser and schedule, or None for nnU-Net's. `averaging`: the
    largest decay of an exponential moving average of the weights, which is then what is validated and saved.
    """

    network: Callable[[PlansManager, ConfigurationManager, int, int, bool], nn.Module]
    sampler: Sampler
    loss: Callable[[bool], nn.Module]
    regions: bool = True
    modalities: bool = False
    tags: bool = False
    dimensions: tuple[int, ...] = (2, 3)
    optimiser: Callable[[Parameters, ConfigurationManager, int], Optimiser | None] | None = None
    averaging: float | None = None
