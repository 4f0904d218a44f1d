"""Base trainer of methods that also learn from unlabelled cases: a second loader, and steps on both batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunetv2_conemos.annotations.tags import possible_labels
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.training.curves import draw_logged, log_curves, tenths_of_epoch
from nnunetv2_conemos.training.preconditions import require_unlabelled_case
from nnunetv2_conemos.training.sampling import COPIES, QueryDataset, copies
from nnunetv2_conemos.training.streams import Streams, finish, started, without_intensity
from nnunetv2_conemos.training.trainer import PartialLabelTrainer


class SemiSupervisedTrainer(PartialLabelTrainer):
    """A trainer whose `two_stream_step` replaces nnU-Net's training step where some training cases are unlabelled.

    It returns "loss" and the `extras`, further numbers that are logged and drawn over the training (streams.png).
    """

    learns_from_unlabelled = True
    needs_unlabelled: ClassVar[bool] = False
    unlabelled_per_sample: ClassVar[int] = 1  # samples of the unlabelled batch for each of the labelled one
    weak_views: ClassVar[bool] = True  # of unlabelled images: augmented without changes of intensity
    extras: ClassVar[tuple[str, ...]] = ()
    training_cases: Sequence[str] = ()

    @property
    def largest_norm(self) -> float:
        """The norm to which gradients are clipped, as nnU-Net does."""
        return 12.0

    @abstractmethod
    def two_stream_step(self, labelled: dict, unlabelled: dict) -> dict:
        """Train on a batch of each stream."""

    def check_data(self, plans: dict, configuration: str) -> None:
        super().check_data(plans, configuration)
        if self.needs_unlabelled:
            require_unlabelled_case(self.table, self.table.cases, type(self).__name__)

    def get_tr_and_val_datasets(self) -> tuple[QueryDataset, QueryDataset]:
        train, validation = super().get_tr_and_val_datasets()
        self.training_cases = list(train.dataset.identifiers)
        if self.needs_unlabelled:
            require_unlabelled_case(self.table, self.training_cases, type(self).__name__)
        used = {*self.training_cases, *validation.dataset.identifiers}
        unused = [case for case in self.table.cases if case not in used and not self.table.known(case).any()]
        if unused:
            self.print_to_log_file(
                f"{len(unused)} cases without annotations are in no part of fold {self.fold} of splits_final.json, so "
                f"they are not used: {shorten(unused)}."
            )
        return train, validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        labelled, validation = super().get_dataloaders()
        cases = [case for case in self.training_cases if not self.table.known(case).any()]
        if not cases:
            self.print_to_log_file("Every training case is annotated for something: supervised training.")
            return labelled, validation
        self.print_to_log_file(f"{len(cases)} training cases are not annotated for anything: the unlabelled stream.")
        return Streams(labelled, self.unlabelled_loader(cases)), validation

    def unlabelled_loader(self, cases: list[str]) -> Any:
        """Return a loader of these cases, sampled by the weight of their source, at random positions.

        The augmentation is nnU-Net's; that of weak views moves and deforms, but does not change intensities.
        """
        assert self.dataset_class is not None
        patch_size: Any = self.configuration_manager.patch_size
        rotation, dummy_2d, initial, mirror = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        masks = self.configuration_manager.use_mask_for_norm
        augmentation: Any = self.get_training_transforms(patch_size, rotation, None, mirror, dummy_2d, masks)
        times = copies([self.table.weight(case) for case in cases], COPIES * len(cases))
        dataset = self.dataset_class(str(self.preprocessed_dataset_folder), np.repeat(cases, times).tolist())
        loader = nnUNetDataLoader(
            self.annotated_only(dataset),  # pyright: ignore[reportArgumentType]
            self.unlabelled_per_sample * self.batch_size,
            initial,
            patch_size,
            self.label_manager,
            oversample_foreground_percent=0.0,
            transforms=without_intensity(augmentation) if self.weak_views else augmentation,
        )
        return started(loader, self.device.type == "cuda")

    def possible(self, keys: Iterable[Any]) -> Bool[Tensor, "B K"]:
        """Mark the labels that image tags do not rule out in the whole volume of each case of a batch."""
        names = self.table.labels.names
        of_cases = np.stack([possible_labels(self.table.tags(str(key)), names) for key in keys])
        return torch.from_numpy(of_cases).to(self.device)

    def train_step(self, batch: Any) -> dict:
        if isinstance(batch, dict):
            return super().train_step(batch)
        report = self.checked(self.two_stream_step(*batch), *batch)
        self.update_average()
        return report

    def backward_in_turn(self, terms: Sequence[Callable[[], Tensor]]) -> list[float]:
        """Step on the sum of several losses, differentiating each before the next, which takes the memory of one."""
        self.optimizer.zero_grad(set_to_none=True)
        scaler, values = self.grad_scaler, []
        for number, term in enumerate(terms, start=1):
            with self.network.no_sync() if self.is_ddp and number < len(terms) else nullcontext():
                with self.precision():
                    loss = term()
                (loss if scaler is None else scaler.scale(loss)).backward()
            values.append(loss.item())
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_norm)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        return values

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        tenths = tenths_of_epoch(train_outputs, self.extras, self.is_ddp)
        if self.local_rank != 0:
            return
        means = log_curves(self.logger, tenths, self.current_epoch)
        if not all(map(np.isnan, means.values())):  # NaN where nothing was unlabelled
            self.print_to_log_file(", ".join(f"{name} {mean:.4f}" for name, mean in means.items()))
            draw_logged(self.logger, means, Path(self.output_folder) / "streams.png")

    def on_train_end(self) -> None:
        super().on_train_end()
        finish(self.dataloader_train)
