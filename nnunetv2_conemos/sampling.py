"""What is drawn and asked: nnU-Net's loader is left as it is and offered virtual identifiers.

Axis letters: **B** sample, **Q** labels asked, numbered 1..K.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from torch import Tensor

from nnunetv2_conemos.sources import SourceTable

SEPARATOR = "::"  # of a virtual identifier: case::label
COPIES = 10  # length of every label's list in units of the longest: the finer, the better weights are met


class Asked(NamedTuple):
    """What a batch asks: `labels` [B,Q] integer (0 = nothing), `known` [B,Q] boolean."""

    labels: Tensor
    known: Tensor


@runtime_checkable
class Ask(Protocol):
    """Which identifiers the loader draws from, uniformly, and which labels an identifier asks."""

    def identifiers(self, table: SourceTable, cases: Sequence[str]) -> np.ndarray:
        """1-D string array; a list would cost the loader milliseconds a draw."""
        ...

    def parse(self, identifier: str, table: SourceTable) -> tuple[str, tuple[int, ...]]:
        """The case and the labels (1..K) that an identifier asks."""
        ...


class Pairs:
    """One label per sample: the label uniformly, then a pair of that label (Billot et al., CoNeMOS, MIDL 2024).

    A label that is annotated but absent from the case is asked like any other.
    """

    def identifiers(self, table: SourceTable, cases: Sequence[str], seed: int = 12345) -> np.ndarray:
        """`case::label` such that a uniform draw asks each annotated label equally often.

        Within a label, cases are drawn in proportion to the weight of their source. Raises ValueError where no case
        is annotated for anything.
        """
        rng = np.random.default_rng(seed)
        per_label = [[case for case in cases if table.known(case)[k]] for k in range(len(table.labels))]
        length = COPIES * max(map(len, per_label))
        if length == 0:
            raise ValueError(f"none of these {len(cases)} cases is annotated for any label: there is nothing to ask.")
        identifiers = []
        for label, annotated in enumerate(per_label, start=1):
            if annotated:
                shuffled = rng.permutation(annotated)
                share = np.cumsum([table.weight(case) for case in shuffled])
                copies = np.diff(np.round(share / share[-1] * length).astype(int), prepend=0)
                identifiers += np.repeat([f"{case}{SEPARATOR}{label}" for case in shuffled], copies).tolist()
        return np.array(identifiers)

    def parse(self, identifier: str, table: SourceTable) -> tuple[str, tuple[int, ...]]:
        case, label = identifier.rsplit(SEPARATOR, 1)
        return case, (int(label),)


def what_is_asked(ask: Ask, identifiers: Iterable[str], table: SourceTable) -> Asked:
    """The questions of a drawn batch; shorter rows are padded with 0."""
    parsed = [ask.parse(str(identifier), table) for identifier in identifiers]
    width = max(len(labels) for _, labels in parsed)
    rows = np.zeros((len(parsed), width), dtype=np.int64)
    known = np.zeros((len(parsed), width), dtype=bool)
    for row, (case, labels) in enumerate(parsed):
        rows[row, : len(labels)] = labels
        known[row, : len(labels)] = table.known(case)[np.array(labels) - 1]
    return Asked(torch.from_numpy(rows), torch.from_numpy(known))


class AskedDataset:
    """An nnU-Net dataset whose foreground, for nnU-Net's loader, is the labels that an identifier asks.

    `location_keys`: the keys of nnU-Net's `class_locations` in label order (ids, or regions), `always` those that stay
    whatever is asked (nnU-Net's key for annotated voxels when there is an ignore label).
    """

    def __init__(
        self,
        dataset: nnUNetBaseDataset,
        ask: Ask,
        table: SourceTable,
        location_keys: Sequence[int | tuple[int, ...]],
        always: Sequence[tuple[int, ...]] = (),
    ):
        self.dataset, self.ask, self.table = dataset, ask, table
        self.location_keys, self.always = list(location_keys), list(always)
        self.identifiers = ask.identifiers(table, dataset.identifiers)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As nnU-Net's datasets: image, label map, previous stage, properties."""
        case, labels = self.ask.parse(str(identifier), self.table)
        loaded: Any = self.dataset.load_case(case)  # not typed upstream
        image, target, previous, properties = loaded
        wanted = [*self.always, *(self.location_keys[label - 1] for label in labels)]
        locations = properties["class_locations"]
        narrowed = {key: locations[key] for key in wanted if key in locations}
        return image, target, previous, {**properties, "class_locations": narrowed}
