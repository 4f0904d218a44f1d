"""The frame for methods that learn from cases without annotations too: a second loader, and steps on both batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from jaxtyping import Bool
from matplotlib.figure import Figure
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor, autocast
from torch import distributed as dist

from nnunetv2_conemos.annotations.tags import possible_labels
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.training.preconditions import require_unlabelled_case
from nnunetv2_conemos.training.sampling import COPIES, QueryDataset, copies
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

TENTHS = 10  # points of a curve in each epoch


def within_epochs(name: str) -> str:
    """In nnU-Net's log, the curve of an extra as pairs of epochs done and mean since the pair before."""
    return f"{name}, within epochs"


class Streams(Iterator[tuple[dict[str, Any], dict[str, Any]]]):
    """Batches of a labelled and of an unlabelled loader, side by side."""

    def __init__(self, labelled: Any, unlabelled: Any):
        self.labelled, self.unlabelled = labelled, unlabelled

    def __next__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return next(self.labelled), next(self.unlabelled)

    def finish(self) -> None:
        """End the processes of both loaders."""
        for loader in (self.labelled, self.unlabelled):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader._finish()


class SemiSupervisedTrainer(PartialLabelTrainer):
    """`two_stream_step` replaces nnU-Net's training step where training cases are not annotated for anything.

    It returns "loss" and the `extras`, further numbers that are logged and drawn over the training (streams.png).
    """

    learns_from_unlabelled = True
    needs_unlabelled: ClassVar[bool] = False
    unlabelled_per_sample: ClassVar[int] = 1  # samples of the unlabelled batch for each of the labelled one
    weak_views: ClassVar[bool] = True  # of unlabelled images: without what changes intensities
    extras: ClassVar[tuple[str, ...]] = ()
    training_cases: Sequence[str] = ()
    steps_in_epoch = 0

    @property
    def largest_norm(self) -> float:
        """To which gradients are clipped, as nnU-Net does."""
        return 12

    @abstractmethod
    def two_stream_step(self, labelled: dict, unlabelled: dict) -> dict: ...

    def check_data(self, plans: dict, configuration: str) -> None:
        super().check_data(plans, configuration)
        if self.needs_unlabelled:
            require_unlabelled_case(self.table, self.table.cases, type(self).__name__)

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        return (self.current_epoch + self.steps_in_epoch / self.num_iterations_per_epoch) / self.num_epochs

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.steps_in_epoch = 0

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
        return Streams(labelled, self._unlabelled_loader(cases)), validation

    def _unlabelled_loader(self, cases: list[str]) -> Any:
        """Cases by the weight of their source, at random positions, with nnU-Net's augmentation; of weak views, that of
        space alone.
        """
        assert self.dataset_class is not None
        patch_size: Any = self.configuration_manager.patch_size
        rotation, dummy_2d, initial, mirror = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        masks = self.configuration_manager.use_mask_for_norm
        augmentation: Any = self.get_training_transforms(patch_size, rotation, None, mirror, dummy_2d, masks)
        times = copies([self.table.weight(case) for case in cases], COPIES * len(cases))
        loader = nnUNetDataLoader(
            self.dataset_class(str(self.preprocessed_dataset_folder), np.repeat(cases, times).tolist()),
            self.unlabelled_per_sample * self.batch_size,
            initial,
            patch_size,
            self.label_manager,
            oversample_foreground_percent=0.0,
            transforms=without_intensity(augmentation) if self.weak_views else augmentation,
        )
        return started(loader, self.device.type == "cuda")

    def possible(self, keys: Iterable[Any]) -> Bool[Tensor, "B K"]:
        """The labels that image tags do not rule out in the whole volume of each case of a batch."""
        names = self.table.labels.names
        of_cases = np.stack([possible_labels(self.table.tags(str(key)), names) for key in keys])
        return torch.from_numpy(of_cases).to(self.device)

    def train_step(self, batch: Any) -> dict:
        if isinstance(batch, dict):
            return super().train_step(batch)
        report = self.two_stream_step(*batch)
        self.steps_in_epoch += 1
        if self.average:
            self.average.update()
        return report

    def backward_in_turn(self, terms: Sequence[Callable[[], Tensor]]) -> list[float]:
        """A step on the sum of several losses, each differentiated before the next is computed: memory as of one."""
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

    def precision(self) -> Any:
        """nnU-Net's mixed precision on a GPU, else nothing."""
        return autocast("cuda") if self.device.type == "cuda" else dummy_context()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        super().on_train_epoch_end(train_outputs)
        steps = np.array([[output.get(name, np.nan) for name in self.extras] for output in train_outputs])
        tenths = np.array([part.mean(0) for part in np.array_split(steps, min(TENTHS, len(steps)))])
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, tenths)
            tenths = np.mean(gathered, axis=0)
        if self.local_rank == 0:
            self._log(dict(zip(self.extras, tenths.T.tolist(), strict=True)))

    def _log(self, tenths: dict[str, list[float]]) -> None:
        """Into nnU-Net's log, which checkpoints carry, and as a picture; NaN where nothing was unlabelled."""
        curves, means = self.logger.local_logger.my_fantastic_logging, {n: float(np.mean(v)) for n, v in tenths.items()}
        for name, values in tenths.items():
            curve = curves.setdefault(name, [])
            curve += [np.nan] * (self.current_epoch - len(curve))
            self.logger.log(name, means[name], self.current_epoch)
            finer = curves.setdefault(within_epochs(name), [])
            at = self.current_epoch + np.arange(1, len(values) + 1) / len(values)
            finer += zip(at.tolist(), values, strict=True)
        if not all(map(np.isnan, means.values())):
            self.print_to_log_file(", ".join(f"{name} {mean:.4f}" for name, mean in means.items()))
            drawn = {name: curves[within_epochs(name)] for name in means}
            draw_curves(drawn, Path(self.output_folder) / "streams.png")

    def on_train_end(self) -> None:
        super().on_train_end()
        if isinstance(self.dataloader_train, Streams):
            self.dataloader_train.finish()


def started(loader: nnUNetDataLoader, pin_memory: bool) -> Any:
    """A loader in half as many processes as nnU-Net's own, its first batch drawn; in this one where none is allowed."""
    processes = get_allowed_n_proc_DA()
    if processes == 0:
        augmenter: Any = SingleThreadedAugmenter(loader, None)
    else:
        augmenter = NonDetMultiThreadedAugmenter(
            loader, None, max(1, processes // 2), max(3, processes // 4), None, pin_memory, wait_time=0.002
        )
    next(augmenter)
    return augmenter


def without_intensity(transforms: ComposeTransforms) -> ComposeTransforms:
    """nnU-Net's augmentation without what changes intensities; -1 in the map still says what is outside the image."""

    def left_out(transform: Any) -> bool:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        return isinstance(inner, (ImageOnlyTransform, RemoveLabelTansform))

    return ComposeTransforms([t for t in transforms.transforms if not left_out(t)])


def draw_curves(curves: Mapping[str, Iterable[tuple[float, float]]], file: Path) -> None:
    """One panel per number; each value at the number of epochs that were done."""
    figure = Figure(figsize=(6, 2.2 * len(curves)), layout="constrained")
    for axes, (name, pairs) in zip(figure.subplots(len(curves), 1, squeeze=False)[:, 0], curves.items(), strict=True):
        axes.plot(*zip(*pairs, strict=True), "o-", ms=3)
        axes.set(xlabel="epochs done", ylabel=name, xlim=(0, None))
    write_aside(file, lambda aside: figure.savefig(aside, dpi=110, format="png"))
