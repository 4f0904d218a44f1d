"""A second loader of unlabelled cases beside nnU-Net's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA


class Streams(Iterator[tuple[dict[str, Any], dict[str, Any]]]):
    """Batches of a labelled and of an unlabelled loader, side by side."""

    def __init__(self, labelled: Any, unlabelled: Any):
        self.labelled, self.unlabelled = labelled, unlabelled

    def __next__(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return next(self.labelled), next(self.unlabelled)


def finish(loader: Any) -> None:
    """End the processes of a loader, or of both loaders of `Streams`."""
    if isinstance(loader, Streams):
        finish(loader.labelled)
        finish(loader.unlabelled)
    elif isinstance(loader, NonDetMultiThreadedAugmenter):
        with redirect_stdout(StringIO()):  # as nnU-Net does
            loader._finish()


def started(loader: nnUNetDataLoader, pin_memory: bool) -> Any:
    """Start a loader in half as many processes as nnU-Net's own, or in the current one; discard its first batch."""
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
    """Return nnU-Net's augmentation without changes of intensity; -1 in the map still marks voxels outside."""

    def left_out(transform: Any) -> bool:
        inner = transform.transform if isinstance(transform, RandomTransform) else transform
        return isinstance(inner, (ImageOnlyTransform, RemoveLabelTansform))

    return ComposeTransforms([t for t in transforms.transforms if not left_out(t)])
