"""Predict a few labels at a time, so that memory does not grow with the number of labels.

nnU-Net keeps the maps of all labels until the last is computed, and resamples them together. Here its own sliding
window computes the maps of some labels; while it goes on with the next, these are resampled, one by one, into one label
map. The result is nnU-Net's, voxel by voxel: all it does to maps (sums over tiles, mirrored passes and folds,
resampling) it does to each by itself. Axis letters: **B** sample, **M** input channel, **C** labels computed together,
***S** space.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.data_iterators import PreprocessAdapter
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.helpers import empty_cache
from torch import Tensor, nn

from nnunetv2_conemos.datasets.volumes import naming, require_written, write_label_map_once
from nnunetv2_conemos.files import exclusive, remove
from nnunetv2_conemos.inference.background import Background
from nnunetv2_conemos.inference.memory import memory_for
from nnunetv2_conemos.inference.running_map import RunningMap
from nnunetv2_conemos.records import OutputLabels
from nnunetv2_conemos.signals import cleanup

LABELS_AT_ONCE = 8  # where each costs a pass of its own; a multiple of those that such networks compute together
MAX_BYTE = 255


class ChosenLabels(nn.Module):
    """A network as nnU-Net's predictor uses it, which returns the logits [B,C,*S] of some output labels.

    The output labels of networks with a pass per label are set to these; of others, that need all of them, channels are
    chosen.
    """

    def __init__(self, network: nn.Module, labels: Sequence[int]):
        super().__init__()
        self.network = network
        self.whole: Any = getattr(network, "_orig_mod", network)  # without torch.compile
        self.before = self.whole.output_labels
        if self.whole.pass_per_label:
            self.whole.output_labels = tuple(labels)
        channels = [self.whole.output_labels.index(label) for label in labels]
        self.channels = None if channels == list(range(len(self.whole.output_labels))) else channels  # None: all

    def forward(self, image: Tensor) -> Tensor:
        logits = self.network(OutputLabels(image))
        return logits if self.channels is None else logits[:, self.channels]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.whole.load_state_dict(state_dict, strict, assign)

    def restore(self) -> None:
        """Set the output labels of the network as they were before."""
        self.whole.output_labels = self.before


class StreamingPredictor(nnUNetPredictor):
    """nnU-Net's predictor of label maps, for networks of this package, that keeps the maps of a few labels only.

    `labels_at_once`: how many; None: LABELS_AT_ONCE where each label costs a pass of its own, else all. With
    probabilities, which are the maps of all labels, everything is as in nnU-Net.
    """

    labels_at_once: int | None = None

    def predict_from_data_iterator(
        self,
        data_iterator: Iterable[dict[str, Any]],
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
    ) -> list[Any]:
        """Write the label map of each preprocessed case, or return it [*S] where the case has no `ofile`.

        `num_processes_segmentation_export` threads resample; 0: everything in this thread.
        """
        if save_probabilities:
            return super().predict_from_data_iterator(data_iterator, True, num_processes_segmentation_export)
        with Background(num_processes_segmentation_export) as background:
            maps = [self._predict_case(case, background) for case in data_iterator]
        compute_gaussian.cache_clear()
        empty_cache(self.device)
        return [label_map.result() for label_map in maps]

    def _internal_get_data_iterator_from_lists_of_filenames(
        self, images: list[list[str]], previous_stage: Any, outputs: list[str] | None, num_processes: int
    ) -> Any:
        if num_processes:
            return super()._internal_get_data_iterator_from_lists_of_filenames(
                images, previous_stage, outputs, num_processes
            )
        plans, configuration, dataset_json = self._configured()
        preprocessor = configuration.preprocessor_class(verbose=self.verbose_preprocessing)
        return PreprocessAdapter(images, previous_stage, preprocessor, outputs, plans, dataset_json, configuration)

    def _configured(self) -> tuple[Any, Any, Any]:
        """Return plans, configuration and dataset.json, which are not typed upstream."""
        return self.plans_manager, self.configuration_manager, self.dataset_json

    def _predict_case(self, case: dict[str, Any], background: Background) -> Future[np.ndarray | None]:
        """Compute a case chunk by chunk; return its label map to come, None once it is written."""
        chunks, properties = self.chunks(), case["data_properties"]
        manager: Any = self.label_manager
        output = None if case["ofile"] is None else Path(case["ofile"])
        name = "array" if output is None else output.name
        if self.allow_tqdm:
            print(f"\n{name}: {sum(map(len, chunks))} label(s), {len(chunks[0])} at a time")
        so_far = RunningMap(manager, properties["shape_after_cropping_and_before_resampling"])

        def add(labels: Sequence[int], logits: np.ndarray) -> None:
            maps = background.map(self._resampled, np.split(logits, len(labels)), [properties] * len(labels))
            for label, resampled in zip(labels, maps, strict=True):
                so_far.add(label, resampled)

        def add_and_finish(labels: Sequence[int], logits: np.ndarray) -> np.ndarray | None:
            add(labels, logits)
            return self._finish(so_far.values, properties, output)

        for labels in chunks[:-1]:
            background.run(add, labels, self._logits(case["data"], labels, name))
        return background.run(add_and_finish, chunks[-1], self._logits(case["data"], chunks[-1], name))

    def chunks(self) -> list[list[int]]:
        """Return the output labels, ascending, in chunks that are computed together."""
        network: Any = getattr(self.network, "_orig_mod", self.network)
        labels = sorted(network.output_labels)
        size = self.labels_at_once or (LABELS_AT_ONCE if network.pass_per_label else len(labels))
        return [labels[start : start + size] for start in range(0, len(labels), size)]

    def _logits(self, data: Tensor, labels: Sequence[int], case: str) -> np.ndarray:
        """Return the logits [C,*S] of some labels, in half precision, averaged over tiles, mirrored passes, folds."""
        network: Any = self.network
        manager = self.label_manager
        chosen = ChosenLabels(network, labels)
        self.network, self.label_manager = chosen, SimpleNamespace(num_segmentation_heads=len(labels))
        try:
            with memory_for(case, len(labels), data.shape[1:]):
                return self.predict_logits_from_preprocessed_data(data).numpy()
        finally:
            chosen.restore()
            self.network, self.label_manager = network, manager

    def _resampled(self, logits: np.ndarray, properties: dict[str, Any]) -> np.ndarray:
        """Resample one map [1,*S] to the grid of the cropped image, as nnU-Net does; return it as [*S]."""
        plans, configuration, _ = self._configured()
        shape = properties["shape_after_cropping_and_before_resampling"]
        target = [properties["spacing"][axis] for axis in plans.transpose_forward]
        planned = configuration.spacing
        current = planned if len(planned) == len(shape) else [target[0], *planned]
        return np.asarray(configuration.resampling_fn_probabilities(logits, shape, current, target)[0])

    def _finish(self, cropped: np.ndarray, properties: dict[str, Any], output: Path | None) -> np.ndarray | None:
        """Undo cropping and transposition; write the label map, or return it where there is no file to write.

        `output` has no ending.
        """
        plans, _, dataset_json = self._configured()
        whole = np.zeros(properties["shape_before_cropping"], dtype=cropped.dtype)
        label_map = insert_crop_into_image(whole, cropped, properties["bbox_used_for_cropping"])
        label_map = np.asarray(label_map).transpose(plans.transpose_backward)
        if output is None:
            return label_map
        file = output.with_name(f"{output.name}{dataset_json['file_ending']}")
        with naming(output.name):
            write_prediction(label_map, file, plans.image_reader_writer_class(), properties)
        return None


def write_prediction(label_map: np.ndarray, file: Path, reader: Any, properties: dict[str, Any]) -> None:
    """Write a label map [*S], with any file that goes with it, beside its place, then rename it."""
    aside = file.with_name(f".{file.name}.{token_hex(8)}")
    with exclusive(file), cleanup(lambda: remove(aside)):
        aside.mkdir()
        write_label_map_once(label_map, aside / file.name, reader, properties)
        if label_map.max(initial=0) > MAX_BYTE:  # which not every reader can write
            require_written(aside / file.name, reader, label_map)
        for part in sorted(aside.iterdir(), key=lambda part: part.name == file.name):
            part.replace(file.with_name(part.name))
