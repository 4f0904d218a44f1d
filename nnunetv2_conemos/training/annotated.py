"""Cases as their annotators left them: values of labels that a case is not annotated for never reach training.

nnU-Net's augmentation interpolates every value of a label map against the others, and its patches are centred on
voxels that it sampled value by value. So such values would move annotated labels and patches, although no loss
counts them; they are taken away before both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.label_maps import visible_values
from nnunetv2_conemos.errors import FileError, brief

OUTSIDE = -1  # nnU-Net's value of voxels outside the image
Key = int | tuple[int, ...]  # of nnU-Net's `class_locations`: a value, or those of a region
Locations = Mapping[Key, Any]


class VisibleMap:
    """A stored label map [1,*S] whose values change when it is sliced, so that no more is read than is needed."""

    def __init__(self, stored: Any, values: np.ndarray):
        self.stored, self.values = stored, values
        self.shape, self.dtype = stored.shape, values.dtype

    def __getitem__(self, where: Any) -> np.ndarray:
        return self.values[np.asarray(self.stored[where], np.int16).view(np.uint16)]


def value_array(mapping: Mapping[int, int]) -> np.ndarray:
    """Return an int16 array that applies a mapping to unsigned 16-bit values; -1 stays, unknown values become 0."""
    array = np.zeros(np.iinfo(np.uint16).max + 1, dtype=np.int16)
    array[list(mapping)] = list(mapping.values())
    array[OUTSIDE] = OUTSIDE
    return array


class AnnotatedDataset:
    """An nnU-Net dataset whose label maps show annotated labels only, as if the others had been left empty.

    Label mode: values of other labels become 0; region mode: the value that looks the same to an annotator of the known
    regions. The ignore label stays. `keys`: those of nnU-Net's `class_locations` in label order, `always` those that
    matter whatever is annotated. `changed`: the cases whose stored maps show more; they are read once, to sample
    `class_locations` as nnU-Net would have from the maps that remain.
    """

    def __init__(self, dataset: Any, table: SourceTable, keys: Sequence[Key], always: Sequence[Key] = ()):
        self.dataset, self.table, self.identifiers = dataset, table, dataset.identifiers
        self.keys, self.always = list(keys), list(always)
        cases = list(dict.fromkeys(self.identifiers))
        self.values = {source: self._values_of(source) for source in map(table.source_of, cases)}
        suspects = [case for case in cases if self._may_show_more(case)]
        with ThreadPoolExecutor(max(1, get_allowed_n_proc_DA() // 4)) as threads:
            found = dict(zip(suspects, threads.map(self._visible_locations, suspects), strict=True))
        self.locations = {case: locations for case, locations in found.items() if locations is not None}
        self.changed = list(self.locations)

    def load_case(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load image, label map, previous stage and properties, as nnU-Net's datasets do."""
        image, target, previous, properties = self._stored(case)
        if (values := self.values[self.table.source_of(case)]) is not None:
            target = VisibleMap(target, values)
        if case in self.locations:
            properties = {**properties, "class_locations": self.locations[case]}
        return image, target, previous, properties

    def _stored(self, case: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load a case as it was preprocessed; raises FileError that names one whose files are damaged."""
        try:
            return self.dataset.load_case(case)
        except Exception as error:  # each library raises its own
            raise FileError(
                f"case '{case}': its preprocessed files cannot be read ({brief(error)}). Preprocess again: "
                "nnUNetv2_preprocess."
            ) from error

    def _values_of(self, source: str) -> np.ndarray | None:
        """Return what becomes of each value in the maps of a source; None where every label is annotated."""
        labels, annotated = self.table.labels, self.table.sources[source].annotated
        return None if set(annotated) == set(labels.names) else value_array(visible_values(labels, annotated))

    def _may_show_more(self, case: str) -> bool:
        """Return whether the map of a case has voxels of a label that the case is not annotated for."""
        locations = self._stored(case)[3]["class_locations"]
        unknown = [key for key, known in zip(self.keys, self.table.known(case), strict=True) if not known]
        return any(len(locations.get(key, ())) for key in unknown)

    def _visible_locations(self, case: str) -> Locations | None:
        """Sample locations in the map that remains of a case; None where all of the map remains."""
        _, stored, _, properties = self._stored(case)
        stored, values = stored[:], self.values[self.table.source_of(case)]
        target = stored if values is None else VisibleMap(stored, values)[:]
        if (target == stored).all():
            return None
        wanted = set(self._needed(case))
        if not wanted:
            return {}
        kind = np.promote_types(np.int16, np.min_scalar_type(-4 * max(target.shape)))  # 4: sums in nnU-Net's loader
        sampled = DefaultPreprocessor._sample_foreground_locations(target, list(properties["class_locations"]))
        return {key: np.asarray(where, kind) for key, where in sampled.items() if key in wanted}

    def _needed(self, case: str) -> Iterator[Key]:
        yield from self.always
        yield from (key for key, known in zip(self.keys, self.table.known(case), strict=True) if known)
