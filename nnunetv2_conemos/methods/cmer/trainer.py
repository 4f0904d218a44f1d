"""WSS-CMER: segmentation from image tags, with equivariance across input channels (Patel & Dolz, MedIA 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from nnunetv2_conemos.datasets.folders import preprocessed_data
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.methods.cmer.augment import FAMILIES, Family, drawn, jittered
from nnunetv2_conemos.methods.cmer.loss import Reduction, Seen, TagLoss, Tags
from nnunetv2_conemos.methods.cmer.network import WIDTH, CAMNetworks, Fusion, Views
from nnunetv2_conemos.methods.cmer.slices import (
    Known,
    SliceDataset,
    Slices,
    known_slices,
    prevalence,
    require_known_slices,
    tags_of_batch,
)
from nnunetv2_conemos.methods.cmer.thresholds import DEFAULT, best_threshold, dice_by_threshold, fused_volume
from nnunetv2_conemos.training.method import Method, Optimiser, Parameters
from nnunetv2_conemos.training.plans_facts import has_background_head, method_options, output_labels_of
from nnunetv2_conemos.training.sampling import QueryDataset
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


def require_whole_slices(plans: dict, configuration: str, largest: list[int], trainer: str) -> None:
    """A tag says something about a whole slice, so the patch must hold the largest (height, width)."""
    patch = PlansManager(plans).get_configuration(configuration).patch_size
    if any(side < whole for side, whole in zip(patch, largest, strict=True)):
        raise ValueError(
            f"{trainer}: the patch of {configuration}, {list(patch)}, does not hold whole slices, of up to {largest}. "
            f"Make a configuration that does: conemos slices {plans['dataset_name']} -p {plans['plans_name']} "
            f"-c {configuration}"
        )


KEEP_SIDES: tuple[Family, ...] = ("translation", "scaling")  # transforms that leave left and right what they are
UBIQUITOUS = 0.95  # share of the slices from which on a tag says nothing about where a label is


class CMEROptions(BaseModel):
    """Options of a plans configuration under the key `conemos`; the defaults are those published.

    `reduction` of the squared difference of unit maps over the pixels: their mean is at most 2 / (H W), about a
    thousandth of the equivariance term; the sum is 2 - 2 cos. `jitter`: largest random shift of a sample before the
    views are made. `fusion`: how the channels are joined at prediction, or the number (from 0) of the one that is used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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


def cam_networks(
    plans: PlansManager, configuration: ConfigurationManager, channels: int, heads: int, deep_supervision: bool
) -> CAMNetworks:
    options, background = method_options(configuration, CMEROptions), has_background_head(plans)
    if isinstance(options.fusion, int) and not 0 <= options.fusion < channels:
        raise ValueError(f"`fusion`: expected a channel from 0 to {channels - 1}, found {options.fusion}.")
    output_labels, width = output_labels_of(plans, heads - background), WIDTH // options.width_divisor
    return CAMNetworks(channels, heads - background, background, output_labels, width, options.dropout, options.fusion)


def adamw(parameters: Parameters, configuration: ConfigurationManager, epochs: int) -> Optimiser:
    """AdamW with a constant learning rate; for disjoint networks it is the same as one for each."""
    options = method_options(configuration, CMEROptions)
    optimiser = torch.optim.AdamW(parameters, options.learning_rate, weight_decay=options.weight_decay)
    return optimiser, PolyLRScheduler(optimiser, options.learning_rate, epochs, exponent=0)


class CMERTrainer(PartialLabelTrainer):
    """Image tags: a classifier of whole slices for each input channel, whose activation maps are the segmentation.

    2D configurations whose patch holds every slice. Tags of annotated labels follow from the label maps, whose voxels
    are used for nothing else but the choice of the threshold at the end, in validation cases.
    """

    method = Method(
        network=cam_networks, sampler=Slices(), loss=lambda ddp: TagLoss(), tags=True, dimensions=(2,), optimiser=adamw
    )
    settings = {"enable_deep_supervision": False, "oversample_foreground_percent": 0.0}  # noqa: RUF012
    tags: Mapping[str, Known]

    def check_data(self, plans: dict, configuration: str) -> None:
        transpose = plans.get("transpose_forward", [0, 1, 2])
        self.tags, largest = known_slices(preprocessed_data(plans, configuration), self.table, transpose)
        require_whole_slices(plans, configuration, largest, type(self).__name__)
        tagged_only = set(self.table.never_annotated()).difference(self.table.never_annotated(tags=True))
        require_known_slices(self.tags, self.table, sorted(tagged_only))

    def has_supervision(self, case: str) -> bool:
        """Whether any slice is known: that a label is somewhere in a volume says nothing of its slices."""
        return bool(self.tags[case].known.any())

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
        """Without mirroring, neither flips nor rotations; raises ValueError where none is left."""
        allowed: list[Family] = [f for f in self.options.transforms if self.mirroring or f in KEEP_SIDES]
        if not allowed:
            raise ValueError(
                f"`transforms`: {shorten(self.options.transforms)} confuse left and right, which {type(self).__name__} "
                f"is not to do. Add {shorten(KEEP_SIDES)}."
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

    def _build_loss(self) -> nn.Module:
        o = self.options
        weights = (o.exchange_weight, o.equivariance_weight, o.cross_modality_weight)
        return TagLoss(*weights, o.reduction, o.temperature)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, Any, Any, Any]:  # noqa: N802
        """The patch is drawn as it is: the whole slice, in the middle, as at prediction."""
        rotation, dummy_2d, _, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, dummy_2d, tuple(self.configuration_manager.patch_size), axes

    @staticmethod
    def get_training_transforms(
        patch_size: Any,
        rotation_for_DA: Any,  # noqa: N803
        deep_supervision_scales: Any,
        mirror_axes: Any,
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: Any = None,
        is_cascaded: bool = False,
        foreground_labels: Any = None,
        regions: Any = None,
        ignore_label: Any = None,
    ) -> Any:
        """Those of validation: a slice that is cut or turned out of view would not be what its tag says."""
        return PartialLabelTrainer.get_validation_transforms(
            deep_supervision_scales, is_cascaded, foreground_labels, regions, ignore_label
        )

    def wrap_dataset(self, dataset: Any) -> QueryDataset:
        everywhere = (-1, *np.array(self.label_manager.all_labels).tolist())
        return super().wrap_dataset(SliceDataset(dataset, self.tags, everywhere))

    def get_tr_and_val_datasets(self) -> tuple[QueryDataset, QueryDataset]:
        train, validation = super().get_tr_and_val_datasets()
        of_cases = (self.tags[case] for case in train.dataset.dataset.identifiers)
        for name, share in zip(self.table.labels.names, prevalence(of_cases), strict=True):
            if share > UBIQUITOUS or share == 0:
                self.print_to_log_file(
                    f"WARNING: '{name}' is present in {share:.0%} of the training slices of which that is known: such "
                    "tags say nothing about where it is.",
                    also_print_to_console=True,
                )
        return train, validation

    def tagged_batch(self, batch: dict) -> tuple[torch.Tensor, Tags]:
        """Images [B,M,H,W] and tags on this trainer's device; the target of the batch is not looked at."""
        return batch["data"].to(self.device, non_blocking=True), tags_of_batch(batch["keys"], self.tags).to(self.device)

    def train_step(self, batch: dict) -> dict:
        """Both views in one call of the network, in full precision and without clipping, as published."""
        image, tags = self.tagged_batch(batch)
        image = jittered(image, self.options.jitter)
        warp = drawn(self.families, len(image), image.shape[-2:])
        self.optimizer.zero_grad(set_to_none=True)
        first, second = self.network(Views(image, warp(image)))
        loss = self.loss(Seen(first.logits, second.logits, warp(first.maps), second.maps), tags)
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: dict) -> dict:
        """Hard counts [K] of classified slices, over all channels: what the pseudo Dice of the log is the F1 of."""
        image, tags = self.tagged_batch(batch)
        seen = self.cam.activation(image)
        loss = self.loss(Seen(seen.logits, seen.logits, seen.maps, seen.maps), tags)
        present, known = tags.present[:, None], tags.known[:, None]
        hits = (seen.found & present, seen.found & ~present, ~seen.found & present)  # [B,M,K]
        counts = ((hit & known).sum((0, 1)).cpu().numpy() for hit in hits)
        return {"loss": loss.cpu().numpy(), **dict(zip(("tp_hard", "fp_hard", "fn_hard"), counts, strict=True))}

    def on_train_end(self) -> None:
        """Choose the thresholds for the last weights and for the best ones, then write the final checkpoint."""
        self.tune_thresholds()
        best = Path(self.output_folder) / "checkpoint_best.pth"
        if best.is_file() and self.local_rank == 0 and not self.disable_checkpointing:
            last, network = deepcopy(self.cam.state_dict()), self.cam
            checkpoint = torch.load(best, map_location="cpu", weights_only=False)
            network.load_state_dict(checkpoint["network_weights"])
            self.tune_thresholds()
            checkpoint["network_weights"] = network.state_dict()
            write_aside(best, lambda aside: torch.save(checkpoint, aside))
            network.load_state_dict(last)
        super().on_train_end()

    def tune_thresholds(self) -> None:
        """The best mean Dice over validation cases with label maps; without any, the threshold stays in the middle."""
        cases = [case for case in self.do_split()[1] if self.table.known(case).any()]
        dice = {k: [] for k in range(len(self.table.labels))}
        for case in cases:
            for k, of_case in self.dice_of_case(case).items():
                dice[k].append(of_case)
        for k, name in enumerate(self.table.labels.names):
            best = best_threshold(np.array(dice[k])) if dice[k] else None
            self.cam.threshold[k] = best[0] if best else DEFAULT
            why = "none finds it in a label map" if dice[k] else "no label map to choose on"
            if best:
                why = f"Dice {best[1]:.3f}, chosen on {len(dice[k])} validation cases"
            self.print_to_log_file(f"Threshold of '{name}': {best[0] if best else DEFAULT:.2f} ({why}).")

    def dice_of_case(self, case: str) -> dict[int, np.ndarray]:
        """Column of each annotated label -> its Dice at each candidate threshold, without mirroring."""
        made: Any = self.dataset_class
        image, target, *_ = made(str(self.preprocessed_dataset_folder), [case]).load_case(case)
        image, target, labels = image[:], target[0], self.table.labels
        patch, network = tuple(self.configuration_manager.patch_size), self.cam.eval()
        activation = fused_volume(network, image, patch, self.batch_size, self.device)
        counted = target != labels.ignore if labels.ignore is not None else np.ones_like(target, dtype=bool)
        return {
            int(k): dice_by_threshold(activation[k], np.isin(target, labels.values[k]), counted)
            for k in np.flatnonzero(self.table.known(case))
        }

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """The base's, where a validation case has a label map."""
        if not any(self.table.known(case).any() for case in self.do_split()[1]):
            self.print_to_log_file("No validation case has a label map: there is no final Dice.")
            return
        super().perform_actual_validation(save_probabilities)
