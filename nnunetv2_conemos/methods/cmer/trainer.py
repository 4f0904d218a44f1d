"""WSS-CMER: segmentation from image tags, with equivariance across input channels (Patel & Dolz, MedIA 2022)."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from pydantic import Field

from nnunetv2_conemos.errors import InputError, shorten
from nnunetv2_conemos.methods.cmer.augment import FAMILIES, Family, drawn, jittered
from nnunetv2_conemos.methods.cmer.loss import Reduction, Seen, TagLoss
from nnunetv2_conemos.methods.cmer.network import WIDTH, CAMNetworks, Fusion, TwoViews
from nnunetv2_conemos.methods.cmer.slice_trainer import SliceTrainer
from nnunetv2_conemos.methods.cmer.slices import Slices
from nnunetv2_conemos.methods.cmer.thresholds import choose_threshold, dice_of_labels, fused_volume
from nnunetv2_conemos.networks.spec import MethodOptions, NetworkSpec, method_options
from nnunetv2_conemos.training.checkpoints import load, write_checkpoint
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters

KEEP_SIDES: tuple[Family, ...] = ("translation", "scaling")  # transforms that do not confuse left and right


class CMEROptions(MethodOptions):
    """Options of a plans configuration under the key `conemos`; the defaults are the published ones.

    `reduction` of the squared difference of unit maps over the pixels: their mean is at most 2 / (H W), about a
    thousandth of the equivariance term; the sum is 2 - 2 cos. `jitter`: largest random shift of a sample before the
    views are made. `fusion`: how the channels are joined at prediction, or the number (from 0) of the one that is used.
    """

    width_divisor: Literal[1, 2, 4, 8, 16] = 1
    dropout: bool = False
    fusion: Fusion = "mean"
    reduction: Reduction = "mean"
    exchange_weight: float = Field(default=0.5, ge=0)
    equivariance_weight: float = Field(default=1.0, ge=0)
    cross_modality_weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=10.0, gt=0)
    transforms: tuple[Family, ...] = Field(default=FAMILIES, min_length=1)
    jitter: float = Field(default=0.1, ge=0, lt=0.5)
    learning_rate: float = Field(default=5e-5, gt=0)
    weight_decay: float = Field(default=0.5, ge=0)


def cam_networks(spec: NetworkSpec) -> CAMNetworks:
    """Build a network per input channel; raises ValueError where `fusion` names a channel that does not exist."""
    options, channels = spec.options(CMEROptions), spec.num_input_channels
    if isinstance(options.fusion, int) and not 0 <= options.fusion < channels:
        raise InputError(f"`fusion`: expected a channel from 0 to {channels - 1}, found {options.fusion}.")
    return CAMNetworks(spec, WIDTH // options.width_divisor, options.dropout, options.fusion)


def tag_loss(configuration: ConfigurationManager, ddp: bool) -> TagLoss:
    """Build the loss with the weights of the configuration; every process averages over its own slices."""
    o = method_options(configuration, CMEROptions)
    weights = (o.exchange_weight, o.equivariance_weight, o.cross_modality_weight)
    return TagLoss(*weights, o.reduction, o.temperature)


def adamw(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser:
    """Build AdamW with a constant learning rate; for disjoint networks, it is equivalent to one for each."""
    options = method_options(configuration, CMEROptions)
    optimiser = torch.optim.AdamW(parameters, options.learning_rate, weight_decay=options.weight_decay)
    return optimiser, PolyLRScheduler(optimiser, options.learning_rate, epochs, exponent=0)


class CMERTrainer(SliceTrainer):
    """Trainer on image tags: a classifier of slices per input channel, whose activation maps are the segmentation.

    It needs a 2D configuration whose patch holds every slice. Tags of annotated labels follow from the label maps,
    whose voxels are otherwise used only to choose the thresholds at the end, in validation cases.
    """

    method = Method(
        network=cam_networks,
        sampler=Slices(),
        loss=tag_loss,
        options=CMEROptions,
        tags=True,
        dimensions=(2,),
        optimiser=adamw,
    )
    settings = {"enable_deep_supervision": False, "oversample_foreground_percent": 0.0}  # noqa: RUF012

    @property
    def cam(self) -> CAMNetworks:
        """The networks without the wrapper of DDP."""
        assert isinstance(self.bare_network, CAMNetworks)
        return self.bare_network

    @property
    def options(self) -> CMEROptions:
        return method_options(self.configuration_manager, CMEROptions)

    @property
    def families(self) -> tuple[Family, ...]:
        """Families of transforms: without mirroring, no flips or rotations; raises ValueError where none is left."""
        allowed: list[Family] = [f for f in self.options.transforms if self.mirroring or f in KEEP_SIDES]
        if not allowed:
            raise InputError(
                f"`transforms`: {shorten(self.options.transforms)} confuse left and right, which {type(self).__name__} "
                f"must not do. Add {shorten(KEEP_SIDES)}."
            )
        return tuple(allowed)

    def initialize(self) -> None:
        super().initialize()
        self.print_to_log_file(f"Equivariance under {', '.join(self.families)}.")
        if self.num_input_channels == 1:
            self.print_to_log_file("One input channel: the terms between channels are left out.")
        else:
            self.print_to_log_file(f"Cross-modality term: {self.options.reduction} over the pixels.")

    def _do_i_compile(self) -> bool:
        return False  # scaled views change the size of the input

    def train_step(self, batch: dict) -> dict:
        """Step on both views in one call of the network, in full precision and without clipping, as published."""
        image, tags = self.images_and_tags(batch)
        image = jittered(image, self.options.jitter)
        warp = drawn(self.families, len(image), image.shape[-2:])
        self.optimizer.zero_grad(set_to_none=True)
        first, second = self.network(TwoViews(image, warp(image)))
        loss = self.loss(Seen(first.logits, second.logits, warp(first.maps), second.maps), tags)
        loss.backward()
        self.optimizer.step()
        return self.checked({"loss": loss.detach().cpu().numpy()}, batch)

    def validation_step(self, batch: dict) -> dict:
        """Count classified slices, [K], over all channels; the pseudo Dice in the log is their F1 score."""
        image, tags = self.images_and_tags(batch)
        seen = self.cam.activation(image)
        loss = self.loss(Seen(seen.logits, seen.logits, seen.maps, seen.maps), tags)
        present, known = tags.present[:, None], tags.known[:, None]
        hits = (seen.found & present, seen.found & ~present, ~seen.found & present)  # [B,M,K]
        counts = ((hit & known).sum((0, 1)).cpu().numpy() for hit in hits)
        names = ("tp_hard", "fp_hard", "fn_hard")
        return self.checked({"loss": loss.cpu().numpy(), **dict(zip(names, counts, strict=True))}, batch)

    def on_train_end(self) -> None:
        """Choose the thresholds for the last weights and for the best ones, then write the final checkpoint."""
        self.tune_thresholds()
        best = Path(self.output_folder) / "checkpoint_best.pth"
        if best.is_file() and self.local_rank == 0 and not self.disable_checkpointing:
            last, network = deepcopy(self.cam.state_dict()), self.cam
            checkpoint = load(best)
            network.load_state_dict(checkpoint["network_weights"])
            self.tune_thresholds()
            checkpoint["network_weights"] = network.state_dict()
            write_checkpoint(best, lambda aside: torch.save(checkpoint, aside))
            network.load_state_dict(last)
        super().on_train_end()

    def tune_thresholds(self) -> None:
        """Set each threshold to that of best mean Dice over validation cases with label maps; without any, to 0.5."""
        of_cases = [self.dice_of_case(case) for case in self.do_split()[1] if self.table.known(case).any()]
        for k, name in enumerate(self.table.labels.names):
            threshold, why = choose_threshold([dice[k] for dice in of_cases if k in dice])
            self.cam.threshold[k] = threshold
            self.print_to_log_file(f"Threshold of '{name}': {threshold:.2f} ({why}).")

    def dice_of_case(self, case: str) -> dict[int, np.ndarray]:
        """Return the Dice at each candidate threshold, by the column of each annotated label, without mirroring."""
        made: Any = self.dataset_class
        image, target, *_ = made(str(self.preprocessed_dataset_folder), [case]).load_case(case)
        patch, network = tuple(self.configuration_manager.patch_size), self.cam.eval()
        activation = fused_volume(network, image[:], patch, self.batch_size, self.device)
        return dice_of_labels(activation, target[0], self.table.labels, np.flatnonzero(self.table.known(case)).tolist())

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Run the final validation where a validation case has a label map."""
        if not any(self.table.known(case).any() for case in self.do_split()[1]):
            self.print_to_log_file("No validation case has a label map: there is no final Dice.")
            return
        super().perform_actual_validation(save_probabilities)
