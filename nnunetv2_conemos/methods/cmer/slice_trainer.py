"""A trainer whose samples are whole slices, with the known tags of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor

from nnunetv2_conemos.datasets.folders import preprocessed_data
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.methods.cmer.loss import Tags
from nnunetv2_conemos.methods.cmer.slices import (
    Known,
    SliceDataset,
    known_slices,
    prevalence,
    require_known_slices,
    tags_of_batch,
)
from nnunetv2_conemos.training.sampling import QueryDataset
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

UBIQUITOUS = 0.95  # share of the slices above which a tag says nothing about where a label is


class SliceTrainer(PartialLabelTrainer):
    """A trainer on whole slices without augmentation, because a tag applies to a whole slice.

    Only slices of which something is known are sampled: from label maps, of annotated labels, or from image tags. The
    method of a subclass samples with `Slices`.
    """

    tags: Mapping[str, Known]

    def check_data(self, plans: dict, configuration: str) -> None:
        transpose = plans.get("transpose_forward", [0, 1, 2])
        self.tags, largest = known_slices(preprocessed_data(plans, configuration), self.table, transpose)
        require_whole_slices(plans, configuration, largest, type(self).__name__)
        tagged_only = set(self.table.never_annotated()).difference(self.table.never_annotated(tags=True))
        require_known_slices(self.tags, self.table, sorted(tagged_only))

    def has_supervision(self, case: str) -> bool:
        """Return whether any slice is known: that a label is somewhere in a volume says nothing about a slice."""
        return bool(self.tags[case].known.any())

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, Any, Any, Any]:  # noqa: N802
        """Return nnU-Net's settings with the initial patch as final one: the whole slice, centred, as at prediction."""
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
        """Return the transforms of validation: in a slice that is cropped or rotated, a tag might no longer hold."""
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

    def images_and_tags(self, batch: dict) -> tuple[Tensor, Tags]:
        """Return images [B,M,H,W] and tags on this trainer's device; the target of the batch is not used."""
        return batch["data"].to(self.device, non_blocking=True), tags_of_batch(batch["keys"], self.tags).to(self.device)


def require_whole_slices(plans: dict, configuration: str, largest: list[int], trainer: str) -> None:
    """Raise ValueError where the patch does not hold the largest slice (height, width)."""
    patch = PlansManager(plans).get_configuration(configuration).patch_size
    if any(side < whole for side, whole in zip(patch, largest, strict=True)):
        raise InputError(
            f"{trainer}: the patch of {configuration}, {list(patch)}, does not hold whole slices, of up to {largest}. "
            f"Make a configuration that does: conemos slices {plans['dataset_name']} -p {plans['plans_name']} "
            f"-c {configuration}"
        )
