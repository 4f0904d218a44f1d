"""Slices as samples, with their known tags; nnU-Net's loader samples virtual identifiers `case::slice`.

Axis letters: **D** slices, **K** labels, **M** input channel, **H**, **W** sides of a slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.tags import ARRAY_AXIS, slices_with
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.methods.cmer.loss import Tags
from nnunetv2_conemos.training.sampling import COPIES, SEPARATOR, Sample, copies


class Known(NamedTuple):
    """Labels `present` in each slice of a preprocessed case, and whether that is `known`; boolean [D,K] each."""

    present: np.ndarray
    known: np.ndarray


def known_of_case(dataset: Any, case: str, table: SourceTable, transpose: Sequence[int]) -> Known:
    """Read what is known about the slices of a case: annotated labels from the label map, tagged ones from `tags`.

    The map of a case that is annotated for nothing is not read. `transpose` is that of the plans. Raises
    SourceError for tags of slices that do not exist, and for those along another axis than the slices have here.
    """
    image, target, _, properties = dataset.load_case(case)
    present = np.zeros((image.shape[1], len(table.labels)), dtype=bool)
    known = present.copy()
    if table.known(case).any():
        target = target[0]
        ignored = np.isin(target, [] if table.labels.ignore is None else [table.labels.ignore]).any((1, 2))
        for k in np.flatnonzero(table.known(case)):
            present[:, k] = np.isin(target, table.labels.values[k]).any((1, 2))
            known[:, k] = present[:, k] | ~ignored
    for k in np.flatnonzero(table.tagged(case)):
        present[:, k], known[:, k] = tagged_slices(case, table.labels.names[k], table, transpose, properties)
    return Known(present, known)


def tagged_slices(
    case: str, label: str, table: SourceTable, transpose: Sequence[int], properties: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return present and known, boolean [D] each, of a tagged label in the slices that preprocessing kept."""
    tag, first = table.tags(case)[label], transpose[0]
    if not isinstance(tag, bool) and ARRAY_AXIS[table.tag_axis] != first:
        stacked = next(name for name, axis in ARRAY_AXIS.items() if axis == first)
        raise SourceError(
            f"`tags`, case '{case}', label '{label}': slices are counted along {table.tag_axis}, but these plans cut "
            f"slices along {stacked}. Tag along {stacked}, or set `transpose_forward` and `transpose_backward` of the "
            "plans so that the tagged axis is the first, and preprocess again."
        )
    where = f"`tags`, case '{case}', label '{label}'"
    present, known = slices_with(tag, properties["shape_before_cropping"][0], where)
    kept = slice(*properties["bbox_used_for_cropping"][0])
    return present[kept], known[kept]


def known_slices(folder: Path, table: SourceTable, transpose: Sequence[int]) -> tuple[dict[str, Known], list[int]]:
    """Return what is known about the slices of every preprocessed case, and their largest height and width."""
    dataset: Any = infer_dataset_class(str(folder))(str(folder))
    known = {case: known_of_case(dataset, case, table, transpose) for case in dataset.identifiers}
    sides = [dataset.load_case(case)[0].shape[-2:] for case in dataset.identifiers]
    return known, np.max(sides, axis=0).tolist()


def require_known_slices(tags: Mapping[str, Known], table: SourceTable, wanted: Sequence[str]) -> None:
    """Raise SourceError for a `wanted` label of which no slice is known."""
    supervised = np.any([known.known.any(0) for known in tags.values()], axis=0)
    lacking = [name for name, there in zip(table.labels.names, supervised, strict=True) if not there and name in wanted]
    if lacking:
        raise SourceError(
            f"no slice is known to show or not to show {shorten(lacking)}: `true` in `tags` says nothing about a slice."
            " List the slices of some cases, or remove the label from `tagged`."
        )


def prevalence(tags: Iterable[Known]) -> np.ndarray:
    """Return the share of the known slices that show each label, [K]; NaN where none is known."""
    present, known = (np.concatenate(column) for column in zip(*tags, strict=True))
    with np.errstate(invalid="ignore"):
        return (present & known).sum(0) / known.sum(0)


def divided(identifier: str) -> tuple[str, int]:
    """Split a virtual identifier into case and slice."""
    case, number = identifier.rsplit(SEPARATOR, 1)
    return case, int(number)


class SliceDataset:
    """An nnU-Net dataset of the slices about which anything is known; their label maps are always empty.

    `everywhere` is nnU-Net's key for annotated voxels: the middle, so that a patch holds the whole slice.
    """

    def __init__(self, dataset: Any, tags: Mapping[str, Known], everywhere: tuple[int, ...]):
        self.dataset, self.everywhere = dataset, everywhere
        self.identifiers = [
            f"{case}{SEPARATOR}{number}"
            for case in dataset.identifiers
            for number in np.flatnonzero(tags[case].known.any(1))
        ]

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load one slice [M,1,H,W], a label map of zeros [1,1,H,W], no previous stage, properties."""
        case, number = divided(identifier)
        image, _, previous, properties = self.dataset.load_case(case)
        one = image[:, number : number + 1]
        height, width = one.shape[-2:]
        middle = np.array([[0, 0, height // 2, width // 2]])
        nothing = np.zeros((1, 1, height, width), dtype=np.int8)
        return one, nothing, previous, {**properties, "class_locations": {self.everywhere: middle}}


@dataclass(frozen=True)
class Slices:
    """Sampler of slices, in proportion to the weight of their source; no patch is centred on anything.

    Queried are the labels that are annotated or tagged in the case; what is known of them differs between slices.
    """

    def identifiers(self, table: SourceTable, cases: Sequence[str]) -> np.ndarray:
        """Return identifiers to sample, given the slices of a `SliceDataset` (`cases`); raises SourceError if none."""
        if not len(cases):
            raise SourceError("no slice of these cases is known: `true` in `tags` says nothing about a slice.")
        weights = [table.weight(divided(identifier)[0]) for identifier in cases]
        return np.repeat(cases, copies(weights, COPIES * len(weights)))

    def parse(self, identifier: str, table: SourceTable) -> Sample:
        case, _ = divided(identifier)
        labels = np.flatnonzero(table.known(case) | table.tagged(case)) + 1
        return Sample(identifier, tuple(labels.tolist()), ())


def tags_of_batch(identifiers: Iterable[str], tags: Mapping[str, Known]) -> Tags:
    """Return the tags of the sampled slices, boolean [B,K] each."""
    rows = [(tags[case].present[number], tags[case].known[number]) for case, number in map(divided, identifiers)]
    present, known = (torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True))
    return Tags(present, known)
