"""A&D: learn from a few annotated and many unlabelled cases, of one or several domains (Wang & Li, NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor
from torch import distributed as dist

from nnunetv2_conemos.methods.generic_ssl.difficulty import capped
from nnunetv2_conemos.methods.generic_ssl.diffusion import STEPS, q_sample
from nnunetv2_conemos.methods.generic_ssl.loss import ClassWeightedDiceCE
from nnunetv2_conemos.methods.generic_ssl.network import AggregateDecouple, BothStreams, Noisy, against_background
from nnunetv2_conemos.methods.generic_ssl.options import GenericSSLOptions, require_trainable
from nnunetv2_conemos.methods.generic_ssl.pseudo_labels import class_counts, clean_maps, largest_vote, pseudo_labels
from nnunetv2_conemos.methods.generic_ssl.vnet import Shape
from nnunetv2_conemos.methods.generic_ssl.voting import STEPS_BETWEEN
from nnunetv2_conemos.networks.spec import NetworkSpec, method_options
from nnunetv2_conemos.records import Truth, move
from nnunetv2_conemos.training.checkpoints import load
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters, without_options
from nnunetv2_conemos.training.sampling import Cases
from nnunetv2_conemos.training.semi_supervised import SemiSupervisedTrainer

EMA_DECAY = 0.99  # of the decoder of pseudo-labels, which moves towards the mean of the two others in each step
LEARNING_RATE, MOMENTUM, DECAY = 1e-2, 0.9, 3e-5  # of the published SGD
SURE = 20.0  # logit of a voxel that a sampled map says to be 1; those of maps in [-1, 1] would be beaten by sums
CONFIDENT = 0.5  # a vote below which the diffusion decides hardly any pseudo-label


def three_decoders(spec: NetworkSpec) -> AggregateDecouple:
    """Build the network with the widths, kernels and strides of the plans."""
    options = spec.options(GenericSSLOptions)
    planned: Any = spec.planned_unet(spec.num_labels + 1, deep_supervision=False).encoder
    norm = options.norm_of(spec.configuration.batch_size)
    shape = Shape(planned.conv_op, planned.output_channels, planned.kernel_sizes, planned.strides, norm)
    return AggregateDecouple(spec, shape, options.unlabelled_weight > 0, options.diffusion == "always")


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
    extras = (
        *("denoising loss", "reweighted loss", "unlabelled loss"),
        *("weight of the unlabelled loss", "votes of the diffusion"),
    )

    def check_data(self, plans: dict, configuration: str) -> None:
        super().check_data(plans, configuration)
        require_trainable(method_options(PlansManager(plans).get_configuration(configuration), GenericSSLOptions))

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
        images, pseudo, votes = None, None, False
        if network.learns_unlabelled:
            network.ema_update(self.kept_of_decoder)
            images = unlabelled["data"].to(self.device, non_blocking=True)
            votes = self.diffusion_votes(noisy.image, truth)
            pseudo = self.pseudo_truth(images, self.possible(unlabelled["keys"]), votes)
        weight = ramp_up(self.progress, self.options.unlabelled_weight, self.options.ramp)
        parts: list[Tensor] = []

        def total() -> Tensor:
            denoised, reweighted, *unlabelled_logits = map(against_background, self.network(BothStreams(noisy, images)))
            difficulty = network.difficulty.update(self._summed(class_counts(denoised, truth)))
            weights = {"capped": capped(difficulty), "published": difficulty, "none": None}[self.options.difficulty]
            parts.extend((self.loss(denoised, truth), self.loss(reweighted, truth, weights)))
            parts.extend(self.loss(logits, pseudo) for logits in unlabelled_logits)
            return parts[0] + parts[1] + weight * sum(parts[2:])

        (loss,) = self.backward_in_turn([total])
        values = [*(p.item() for p in parts), *[0.0] * (3 - len(parts)), weight, float(votes)]
        return {"loss": np.array(loss), **dict(zip(self.extras, values, strict=True))}

    @property
    def kept_of_decoder(self) -> float:
        """The share of its weights that the decoder which predicts keeps when it is pulled towards the others."""
        if self.options.pull == "constant":
            return EMA_DECAY
        scheduler: Any = self.lr_scheduler
        return 1 - (1 - EMA_DECAY) * self.optimizer.param_groups[0]["lr"] / scheduler.initial_lr

    def diffusion_votes(self, images: Float[Tensor, "B M *S"], truth: Truth) -> bool:
        """Return whether the diffusion votes on pseudo-labels, after a look at annotated images, if one is due."""
        voting = self.bare_network.voting
        if voting is None:
            return True
        if self.steps_in_epoch % STEPS_BETWEEN == 0:
            maps = self.as_teacher(self.bare_network.sampled_maps, images)
            voting.update(self._summed(class_counts(SURE * against_background(maps), truth)))
        return voting.granted()

    @torch.no_grad()
    def as_teacher(self, made: Callable[[Tensor], Tensor], images: Float[Tensor, "B M *S"]) -> Tensor:
        """Return what the network makes of images without a gradient, in the mode of the option `teacher`."""
        network = self.bare_network
        network.train(self.options.teacher == "train")
        with self.precision():
            found = made(images)
        network.train()
        return found

    @torch.no_grad()
    def pseudo_truth(self, images: Float[Tensor, "B M *S"], possible: Bool[Tensor, "B K"], votes: bool) -> Truth:
        """Return pseudo-labels of unlabelled images as if they were annotations of every supervised label.

        `votes`: whether the diffusion votes beside the reweighted decoder.
        """
        maps = self.as_teacher(self.bare_network.sampled_maps, images) if votes else None
        logits = self.as_teacher(self.bare_network.reweight, images)
        supervised = torch.from_numpy(self.supervised).to(images.device)
        labels = torch.arange(1, len(supervised) + 1, device=images.device).expand(len(images), -1)
        found = pseudo_labels(maps, logits, supervised, possible)[:, None]
        return Truth(found, labels, supervised.expand(len(images), -1), None)

    def on_train_end(self) -> None:
        """Write the final checkpoint, with the weights that were best on annotated validation cases if wanted."""
        best = Path(self.output_folder) / "checkpoint_best.pth"
        if self.is_ddp:
            dist.barrier()  # until the first process has written it
        if self.options.checkpoint == "best" and best.is_file() and not self.disable_checkpointing:
            checkpoint = load(best)
            self.bare_network.load_state_dict(checkpoint["network_weights"])
            self.print_to_log_file(
                f"The final checkpoint has the weights of {best.name}, from epoch {checkpoint['current_epoch'] - 1}, "
                "the best on annotated validation cases."
            )
        super().on_train_end()

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
