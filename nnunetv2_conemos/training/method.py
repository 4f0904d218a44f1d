"""The record of a method: the scientific content of a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from nnunetv2_conemos.networks.base import PartialLabelNetwork
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec
from nnunetv2_conemos.training.sampling import Sampler

Parameters = Iterable[nn.Parameter]
Optimiser = tuple[torch.optim.Optimizer, LRScheduler]
Loss = Callable[[ConfigurationManager, bool], nn.Module]


@dataclass(frozen=True)
class Method:
    """The parts that define a method; everything else is nnU-Net's or that of the base trainer.

    `network(spec)` builds the network. `sampler`: what the loader samples and which labels a sample queries.
    `loss(configuration, ddp)` builds the loss of (logits [B,Q,*S], Truth) at one resolution; options of the plans are
    in the configuration, and with `ddp` it should cover the samples of all processes.
    `options`: those that a plans configuration may set; the plans of a trained model hold all of them.
    `regions`: whether the method allows labels that overlap; `modalities`: whether it is conditioned on the modality of
    a case; `tags`: whether it learns from image tags; `dimensions`: those of the configurations that it trains.
    `optimiser(parameters, configuration, epochs)` gives optimiser and schedule, or None for nnU-Net's. `averaging`: the
    largest decay of an exponential moving average of the weights, which is then what is validated and saved.
    """

    network: Callable[[NetworkSpec], PartialLabelNetwork]
    sampler: Sampler
    loss: Loss
    options: type[MethodOptions] = MethodOptions
    regions: bool = True
    modalities: bool = False
    tags: bool = False
    dimensions: tuple[int, ...] = (2, 3)
    optimiser: Callable[[Parameters, ConfigurationManager, int], Optimiser | None] | None = None
    averaging: float | None = None


def without_options(loss: Callable[[bool], nn.Module]) -> Loss:
    """Convert `loss(ddp)` to the loss of a method without options."""
    return lambda configuration, ddp: loss(ddp)
