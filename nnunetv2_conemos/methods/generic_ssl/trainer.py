"""A&D: learn from a few annotated and many unlabelled cases, of one or several domains (Wang & Li, NeurIPS 2023)."""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import Field
from torch import Tensor
from torch import distributed as dist

from nnunetv2_conemos.methods.generic_ssl.diffusion import STEPS, ddim_sample, q_sample
from nnunetv2_conemos.methods.generic_ssl.loss import ClassWeightedDiceCE
from nnunetv2_conemos.methods.generic_ssl.network import AggregateDecouple, BothStreams, Noisy, against_background
from nnunetv2_conemos.methods.generic_ssl.pseudo_labels import class_counts, clean_maps, largest_vote, pseudo_labels
from nnunetv2_conemos.methods.generic_ssl.vnet import Shape
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec, method_options
from nnunetv2_conemos.records import Truth, move
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters, without_options
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.semi_supervised import SemiSupervisedTrainer

EMA_DECAY = 0.99  # of the decoder of pseudo-labels, which moves towards the mean of the two others in each step
LEARNING_RATE, MOMENTUM, DECAY = 1e-2, 0.9, 3e-5  # of the published SGD
CONFIDENT = 0.5  # a vote below which the diffusion decides hardly any pseudo-label


class GenericSSLOptions(MethodOptions):
    """Options of a plans configuration under the key `conemos`.

    `unlabelled_weight`: of the loss on pseudo-labels, reached after the share `ramp` of the training (published: 1, and
    a third for domain generalisation); 0: a decoder that learns from annotations predicts, and nothing is learnt from
    unlabelled cases. `norm`: batch norms are the published ones; they mix the statistics of noisy maps and images.
    `teacher`: whether pseudo-labels are made with dropout and the statistics of the batch (`train`, as published).
    `clip`: clip gradients, as nnU-Net does.
    """

    unlabelled_weight: float = Field(default=10.0, ge=0)
    ramp: float = Field(default=1.0, gt=0, le=1)
    norm: Literal["instance", "batch"] = "instance"
    teacher: Literal["train", "eval"] = "train"
    clip: bool = False
    optimiser: Literal["SGD", "nnU-Net"] = "SGD"


def three_decoders(spec: NetworkSpec) -> AggregateDecouple:
    """Build the network with the widths, kernels and strides of the plans."""
    options = spec.options(GenericSSLOptions)
    planned: Any = spec.planned_unet(spec.num_labels + 1, deep_supervision=False).encoder
    shape = Shape(planned.conv_op, planned.output_channels, planned.kernel_sizes, planned.strides, options.norm)
    return AggregateDecouple(spec, shape, learns_unlabelled=options.unlabelled_weight > 0)


def sgd(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser | None:
    """Build the published optimiser with nnU-Net's schedule; None where the configuration names nnU-Net's own."""
    if method_options(configuration, GenericSSLOptions).optimiser != "SGD":
        return None
    optimiser = torch.optim.SGD(parameters, LEARNING_RATE, MOMENTUM, weight_decay=DECAY, nesterov=True)
    return optimiser, PolyLRScheduler(optimiser, LEARNING_RATE, epochs)


def ramp_up(progress: float, largest: float, share: float) -> float:
    """Return the weight of the loss on pseudo-labels at a share of the training."""
    return largest * math.exp(-5 * (1 - min(progress / share, 1)) ** 2)


class GenericSSLTrainer(SemiSupervisedTrainer):
    """A diffusion and a classifier that learn from annotations and make pseudo-labels for the decoder that predicts.

    A third of the labelled samples is centred on foreground, as in nnU-Net. There is no deep supervision.
    """

    method = Method(
        network=three_decoders,
        sampler=Cases(every=True),
        loss=without_options(ClassWeightedDiceCE),
        options=GenericSSLOptions,
        regions=False,
        optimiser=sgd,
    )
    settings = {"enable_deep_supervision": False, "oversample_foreground_percent": 0.33}  # noqa: RUF012
    needs_unlabelled = True
    supervised: np.ndarray  # boolean [K]: labels that training cases are annotated for
    weak_views = False  # teacher and student see the same image
    extras = ("denoising loss", "reweighted loss", "unlabelled loss", "weight of the unlabelled loss")

    def _do_i_compile(self) -> bool:
        return False  # a step runs parts of the network, the encoder alone a dozen times

    @property
    def options(self) -> GenericSSLOptions:
        return method_options(self.configuration_manager, GenericSSLOptions)

    @property
    def largest_norm(self) -> float:
        return super().largest_norm if self.options.clip else math.inf

    def get_dataloaders(self) -> tuple[Any, Any]:
        loaders = super().get_dataloaders()
        self.supervised = self.table.supervised(self.training_cases)
        network = self.bare_network
        bound = largest_vote(network.classes)
        if bound < CONFIDENT and network.learns_unlabelled:
            self.print_to_log_file(
                f"{network.classes} classes: before the Gumbel noise, the diffusion gives no class more than "
                f"{bound:.2f} of its vote, so the other decoder alone makes nearly all pseudo-labels. UniMOSTrainer "
                "has no such bound."
            )
        return loaders

    def unlabelled_loader(self, cases: list[str]) -> Any:
        """Return a loader of unlabelled cases, an empty one where nothing is learnt from them."""
        if self.bare_network.learns_unlabelled:
            return super().unlabelled_loader(cases)
        self.print_to_log_file("`unlabelled_weight` is 0: no unlabelled case is sampled.")
        return repeat({})

    def two_stream_step(self, labelled: dict, unlabelled: dict) -> dict:
        """Step on the sum of denoising, reweighted and (weighted) unlabelled loss, in one backward pass."""
        scheduler: Any = self.lr_scheduler
        scheduler.step(self.progress * scheduler.max_steps)  # falls with each step, as the weight rises
        network = self.bare_network
        query, truth = self.to_query_and_truth(labelled)
        truth = move(truth, self.device)
        assert isinstance(truth, Truth)
        noisy = with_noise(query.image.to(self.device, non_blocking=True), truth)
        images, pseudo = None, None
        if network.learns_unlabelled:
            network.ema_update(EMA_DECAY)
            images = unlabelled["data"].to(self.device, non_blocking=True)
            pseudo = self.pseudo_truth(images, self.possible(unlabelled["keys"]))
        weight = ramp_up(self.progress, self.options.unlabelled_weight, self.options.ramp)
        parts: list[Tensor] = []

        def total() -> Tensor:
            denoised, reweighted, *unlabelled_logits = map(against_background, self.network(BothStreams(noisy, images)))
            difficulty = network.difficulty.update(self._summed(class_counts(denoised, truth)))
            parts.extend((self.loss(denoised, truth), self.loss(reweighted, truth, difficulty)))
            parts.extend(self.loss(logits, pseudo) for logits in unlabelled_logits)
            return parts[0] + parts[1] + weight * sum(parts[2:])

        (loss,) = self.backward_in_turn([total])
        parts_and_weight = [*(p.item() for p in parts), *[0.0] * (3 - len(parts)), weight]
        return {"loss": np.array(loss), **dict(zip(self.extras, parts_and_weight, strict=True))}

    @torch.no_grad()
    def pseudo_truth(self, images: Float[Tensor, "B M *S"], possible: Bool[Tensor, "B K"]) -> Truth:
        """Return pseudo-labels of unlabelled images as if they were annotations of every supervised label."""
        network = self.bare_network
        noise = torch.randn(len(images), network.classes, *images.shape[2:], device=images.device)
        network.train(self.options.teacher == "train")
        with self.precision():
            maps = ddim_sample(lambda x, step: network.denoise(Noisy(images, x, step)), noise)
            logits = network.reweight(images)
        network.train()
        supervised = torch.from_numpy(self.supervised).to(images.device)
        labels = torch.arange(1, len(supervised) + 1, device=images.device).expand(len(images), -1)
        found = pseudo_labels(maps, logits, supervised, possible)[:, None]
        return Truth(found, labels, supervised.expand(len(images), -1), None)

    def _summed(self, counts: Float[Tensor, "3 C"]) -> Float[Tensor, "3 C"]:
        """Sum over all processes."""
        if self.is_ddp:
            dist.all_reduce(counts)
        return counts


def with_noise(image: Float[Tensor, "B M *S"], truth: Truth) -> Noisy:
    """Add noisy maps to annotated images, of a step of the diffusion sampled for each image."""
    maps = clean_maps(truth)
    step: Int[Tensor, " B"] = torch.randint(STEPS, (len(image),), device=image.device)
    return Noisy(image, q_sample(maps, step, torch.randn_like(maps)), step)
