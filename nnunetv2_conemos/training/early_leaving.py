"""The bounds below which a label leaves early at prediction, chosen in the final validation.

nnU-Net predicts every validation case to the end and writes its map. Meanwhile the network notes the highest coarse
logit of each label in each call. A bound is the lowest of these over all tiles from which a voxel of that label in a
written map was computed, less a margin: predicted again with the bounds, the maps are the same.

Axis letters: **K** labels, **L** decoder levels but the last, coarse to fine, **T** tiles, **P** mirrored passes,
***S** space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from jaxtyping import Bool, Float
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor
from torch import distributed as dist

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.networks.early_leaving import BOUNDS, NEVER, EarlyLeavingUNet
from nnunetv2_conemos.training.checkpoints import load, write_checkpoint
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

MARGIN = 0.1  # logits; prediction in other batches, or in half precision, rounds differently
MIN_WEIGHT = 1e-3  # of a level in the loss; nnU-Net gives the coarsest 0, or 1e-6 with DDP: its logits are not trained
Box = tuple[slice, ...]


@dataclass(frozen=True)
class ValidatedCase:
    """A predicted case: size of its image as the network sees it, nnU-Net's properties, coarse maxima of each call."""

    size: tuple[int, ...]
    properties: dict[str, Any]
    maxima: list[Tensor]  # [L,K] each


def watching(dataset_class: Any, begin: Callable[[str, Any], None]) -> Any:
    """Derive a class of datasets from one of nnU-Net's that says which case is loaded."""

    class Watched(dataset_class):
        def load_case(self, identifier: str) -> Any:
            loaded = super().load_case(identifier)
            begin(identifier, loaded)
            return loaded

    return Watched


class EarlyLeavingTrainer(PartialLabelTrainer):
    """A trainer of networks whose labels may leave early, with bounds for the weights that were validated last."""

    validated = "checkpoint_final.pth"  # the checkpoint whose weights the network has when it is validated

    @property
    def leaving(self) -> EarlyLeavingUNet:
        """The network without the wrappers of DDP and torch.compile."""
        assert isinstance(self.bare_network, EarlyLeavingUNet)
        return self.bare_network

    def on_train_start(self) -> None:
        super().on_train_start()
        self.leaving.absence_bounds.fill_(NEVER)  # those of a checkpoint do not hold for what is trained now
        self.validated = "checkpoint_final.pth"

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            self.validated = Path(filename_or_checkpoint).name

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Run the final validation, and choose the bounds while it predicts, for networks whose labels can leave."""
        if not (self.enable_deep_supervision and self.leaving.levels_to_leave):
            return super().perform_actual_validation(save_probabilities)
        with self.watched() as cases:
            super().perform_actual_validation(save_probabilities)
        return self.keep_bounds(self.chosen_bounds(cases), len(cases))

    @contextmanager
    def watched(self) -> Iterator[dict[str, ValidatedCase]]:
        """Note, within the block, which cases nnU-Net's validation predicts and the coarse maxima of each call."""
        cases: dict[str, ValidatedCase] = {}
        made: Any = self.dataset_class

        def begin(case: str, loaded: Any) -> None:
            self.leaving.maxima = []
            cases[case] = ValidatedCase(tuple(loaded[0].shape[1:]), loaded[-1], self.leaving.maxima)

        self.dataset_class = watching(made, begin)
        try:
            yield cases
        finally:
            self.dataset_class, self.leaving.maxima = made, None

    def chosen_bounds(self, cases: dict[str, ValidatedCase]) -> Float[Tensor, "L K"]:
        """Return the bounds that leave the written maps of these cases as they are, over all processes."""
        lowest = torch.full_like(self.leaving.absence_bounds, torch.inf)
        predictor = nnUNetPredictor(device=self.device)
        settings = self.dataset_json, type(self).__name__, self.inference_allowed_mirroring_axes
        predictor.manual_initialization(self.leaving, self.plans_manager, self.configuration_manager, None, *settings)
        for name, case in cases.items():
            lowest = lowest.minimum(self.lowest_where_found(name, case, predictor).to(lowest))
        if self.is_ddp:
            dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
        weights = self.loss.weight_factors[:0:-1]  # of nnU-Net, fine to coarse
        trained = torch.tensor([weight > MIN_WEIGHT for weight in weights], device=lowest.device)
        return torch.where(lowest.isfinite() & trained[:, None], lowest - MARGIN, NEVER)

    def lowest_where_found(self, name: str, case: ValidatedCase, predictor: nnUNetPredictor) -> Float[Tensor, "L K"]:
        """Return the lowest coarse maximum of each label over the tiles that its voxels were computed from, or inf."""
        boxes = tiles(predictor, case.size, self.configuration_manager.patch_size)
        passes = 2 ** len(self.inference_allowed_mirroring_axes or ())
        calls = torch.stack(case.maxima[-len(boxes) * passes :])  # out of memory on a GPU, nnU-Net starts again
        found = torch.from_numpy(labels_in_tiles(self.written_map(name, case), case.size, boxes, self.table.labels))
        of_tiles = calls.unflatten(0, (len(boxes), passes)).amin(1)
        here = found.to(calls.device)[:, None] & ~of_tiles.isnan()
        return torch.where(here, of_tiles, torch.inf).amin(0)

    def written_map(self, name: str, case: ValidatedCase) -> np.ndarray:
        """Read a map of the final validation, in the axes and within the box that nnU-Net's preprocessing leaves."""
        file = Path(self.output_folder) / "validation" / f"{name}{self.dataset_json['file_ending']}"
        (label_map,), _ = self.plans_manager.image_reader_writer_class().read_seg(str(file))
        transposed = label_map.transpose(self.plans_manager.transpose_forward)
        return transposed[tuple(slice(*sides) for sides in case.properties["bbox_used_for_cropping"])]

    def keep_bounds(self, bounds: Float[Tensor, "L K"], cases: int) -> None:
        """Add the bounds to the network and to the checkpoint that was validated, and say so."""
        self.leaving.absence_bounds.copy_(bounds)
        never = [name for name, some in zip(self.table.labels.names, bounds.isfinite().any(0), strict=True) if not some]
        self.print_to_log_file(
            f"Absent labels may leave early (--skip-absent): bounds chosen on {cases} validation cases. "
            f"Not found there, so never left out: {shorten(never) or 'none'}."
        )
        file = Path(self.output_folder) / self.validated
        if self.local_rank == 0 and file.is_file() and not self.disable_checkpointing:
            checkpoint = load(file)
            weights = {key: value for key, value in checkpoint["network_weights"].items() if key != BOUNDS}
            if len(never) < len(self.table.labels):
                weights[BOUNDS] = bounds.cpu()
            checkpoint["network_weights"] = weights
            write_checkpoint(file, lambda aside: torch.save(checkpoint, aside))


def tiles(predictor: nnUNetPredictor, size: Sequence[int], patch: Sequence[int]) -> list[Box]:
    """Return where nnU-Net's sliding window puts its tiles, in the order of its calls, in voxels of the image.

    A tile may reach beyond an image that is smaller than the patch.
    """
    padding: Any = pad_nd_image(np.zeros((1, *size), bool), tuple(patch), return_slicer=True)
    padded, inside = padding
    windows = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
    before = [side.start for side in inside[1:]]
    return [tuple(_shifted(side, -by) for side, by in zip(window[1:], before, strict=True)) for window in windows]


def _shifted(side: slice | int, by: int) -> slice:
    """Return an interval moved by some voxels; a number is a slice of a 2D configuration."""
    start, stop = (side.start, side.stop) if isinstance(side, slice) else (side, side + 1)
    return slice(start + by, stop + by)


def labels_in_tiles(
    label_map: np.ndarray, size: Sequence[int], boxes: Sequence[Box], labels: LabelSpace
) -> Bool[np.ndarray, "T K"]:
    """Return which labels have a voxel that was computed from each tile, of a map resampled from an image of `size`."""
    found = np.zeros((len(boxes), len(labels)), bool)
    for number, box in enumerate(boxes):
        touched = (computed_from(*of_axis) for of_axis in zip(label_map.shape, size, box, strict=True))
        values = np.unique(label_map[tuple(touched)])
        found[number] = [bool(np.isin(values, of_label).any()) for of_label in labels.values]
    return found


def computed_from(written: int, predicted: int, tile: slice) -> slice:
    """Return the voxels along an axis of a written map that depend on a tile of the predicted image.

    Where sizes differ, nnU-Net interpolates, over at most two voxels of the predicted image on either side.
    """
    if written == predicted:
        return slice(max(0, tile.start), min(written, tile.stop))
    place = np.floor((np.arange(written) + 0.5) * predicted / written - 0.5)
    inside = np.flatnonzero((place - 1 < tile.stop) & (place + 2 >= tile.start))
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)
