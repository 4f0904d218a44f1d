"""Sampling and queries: nnU-Net's loader stays as it is and samples virtual identifiers.

Axis letters: **B** sample, **Q** queried labels, numbered 1..K.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.records import QueriedLabels, Query, Truth, to_truth

SEPARATOR = "::"  # of the parts of a virtual identifier
COPIES = 10  # length of every label's list in units of the longest: the larger, the closer sampling is to the weights


class Sample(NamedTuple):
    """The meaning of an identifier: a case, the queried labels (1..K; 0 is padding), those to centre a patch on."""

    case: str
    queried: tuple[int, ...]
    centred: tuple[int, ...]


@runtime_checkable
class Sampler(Protocol):
    """The identifiers that the loader samples uniformly, and the meaning of each."""

    def identifiers(self, table: SourceTable, cases: Sequence[str]) -> np.ndarray:
        """Return a 1-D array of strings; with a list, each draw would cost the loader milliseconds."""
        ...

    def parse(self, identifier: str, table: SourceTable) -> Sample:
        """Return the meaning of an identifier."""
        ...


def annotated_labels(case: str, table: SourceTable) -> tuple[int, ...]:
    """Return the labels (1..K) that a case is annotated for."""
    return tuple((np.flatnonzero(table.known(case)) + 1).tolist())


def copies(shares: Sequence[float], length: int) -> np.ndarray:
    """Return how often each item must be in a list of this length so that uniform sampling matches its share."""
    ends = np.cumsum(shares)
    return np.diff(np.round(ends / ends[-1] * length).astype(int), prepend=0)


@dataclass(frozen=True)
class Pairs:
    """Sampler of a label, uniformly, then a case annotated for it; patches centre on it (Billot et al., MIDL 2024).

    `queries` says what is then queried, each equally often: "one" (that label), "annotated" (all labels annotated in
    the case) or "all" (every label that is annotated in some case, as at prediction). A label that is annotated but
    absent from the case is queried like any other.
    """

    queries: tuple[Literal["one", "annotated", "all"], ...] = ("one",)

    def identifiers(self, table: SourceTable, cases: Sequence[str], seed: int = 12345) -> np.ndarray:
        """Return `case::label::query` such that uniform sampling takes each annotated label equally often.

        Within a label, cases are sampled in proportion to the weight of their source. Raises ValueError where no case
        is annotated for anything.
        """
        rng = np.random.default_rng(seed)
        per_label = [[case for case in cases if table.known(case)[k]] for k in range(len(table.labels))]
        length = COPIES * max(map(len, per_label))
        if length == 0:
            raise InputError(
                f"none of these {len(cases)} cases is annotated for any label: there is nothing to sample."
            )
        pairs = []
        for label, annotated in enumerate(per_label, start=1):
            if annotated:
                shuffled = rng.permutation(annotated)
                times = copies([table.weight(case) for case in shuffled], length)
                pairs += np.repeat([f"{case}{SEPARATOR}{label}" for case in shuffled], times).tolist()
        return np.array([f"{pair}{SEPARATOR}{query}" for query in self.queries for pair in pairs])

    def parse(self, identifier: str, table: SourceTable) -> Sample:
        case, label, query = identifier.rsplit(SEPARATOR, 2)
        one = (int(label),)
        queried = {
            "one": lambda: one,
            "annotated": lambda: annotated_labels(case, table),
            "all": lambda: tuple((np.flatnonzero(table.supervised()) + 1).tolist()),
        }
        return Sample(case, queried[query](), one)


@dataclass(frozen=True)
class Cases:
    """Sampler of a dataset, in proportion to a power of its number of cases, then a case.

    The power 0.5 is that of Ulrich et al. (MICCAI 2023), 0 samples all datasets equally often. Queried are the labels
    annotated in the case, padded to the largest set that a case has, so that queries have one shape; or every label
    (`every`), for losses that need the others too. Sources that name the same `dataset` are one; a case of weight 2
    is sampled twice as often as one of weight 1.
    """

    every: bool = False
    power: float = 0.5

    def identifiers(self, table: SourceTable, cases: Sequence[str]) -> np.ndarray:
        """Return case identifiers, repeated; raises ValueError where no case is annotated for anything."""
        annotated = [case for case in cases if table.known(case).any()]
        if not annotated:
            raise InputError(
                f"none of these {len(cases)} cases is annotated for any label: there is nothing to sample."
            )
        weights = np.array([table.weight(case) for case in annotated])
        datasets = np.array([table.dataset_of(case) for case in annotated])
        shares = np.zeros(len(annotated))
        for dataset in np.unique(datasets):
            here = datasets == dataset
            shares[here] = weights[here] * here.sum() ** (self.power - 1)
        return np.repeat(annotated, copies(shares.tolist(), COPIES * len(annotated)))

    def parse(self, identifier: str, table: SourceTable) -> Sample:
        known = annotated_labels(identifier, table)
        padded = known + (0,) * (table.largest_set - len(known))
        return Sample(identifier, tuple(range(1, len(table.labels) + 1)) if self.every else padded, known)


def queried_labels(sampler: Sampler, identifiers: Iterable[str], table: SourceTable) -> QueriedLabels:
    """Return the queried labels of a sampled batch; shorter rows are padded with 0."""
    drawn = [sampler.parse(str(identifier), table) for identifier in identifiers]
    width = max(len(one.queried) for one in drawn)
    rows = np.zeros((len(drawn), width), dtype=np.int64)
    known = np.zeros((len(drawn), width), dtype=bool)
    for row, (case, labels, _) in enumerate(drawn):
        rows[row, : len(labels)] = labels
        known[row] = np.append(False, table.known(case))[rows[row]]  # 0: not known
    modality = [table.modality_of(one.case) for one in drawn]
    return QueriedLabels(torch.from_numpy(rows), torch.from_numpy(known), torch.tensor(modality))


def query_and_truth(sampler: Sampler, batch: dict[str, Any], table: SourceTable) -> tuple[Query, list[Truth] | Truth]:
    """Convert a batch of nnU-Net's loader to its query and its ground truth, at one resolution or at several."""
    queried = queried_labels(sampler, batch["keys"], table)
    target, ignore = batch["target"], table.labels.ignore
    query = Query(batch["data"], queried.labels, queried.modality)
    if isinstance(target, list):
        return query, [to_truth(t, queried, ignore) for t in target]
    return query, to_truth(target, queried, ignore)


class QueryDataset:
    """An nnU-Net dataset that presents to nnU-Net's loader, as foreground, the labels that an identifier centres on.

    `dataset` has nnU-Net's `identifiers` and `load_case`. `location_keys`: the keys of nnU-Net's `class_locations` in
    label order (ids, or regions), `always` those that stay whatever is queried (nnU-Net's key for annotated voxels when
    there is an ignore label).
    """

    def __init__(
        self,
        dataset: Any,
        sampler: Sampler,
        table: SourceTable,
        location_keys: Sequence[int | tuple[int, ...]],
        always: Sequence[tuple[int, ...]] = (),
    ):
        self.dataset, self.sampler, self.table = dataset, sampler, table
        self.location_keys, self.always = list(location_keys), list(always)
        self.identifiers = sampler.identifiers(table, dataset.identifiers)

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Load image, label map, previous stage and properties, as nnU-Net's datasets do."""
        case, _, centred = self.sampler.parse(str(identifier), self.table)
        loaded: Any = self.dataset.load_case(case)  # not typed upstream
        image, target, previous, properties = loaded
        wanted = [*self.always, *(self.location_keys[label - 1] for label in centred)]
        locations = properties["class_locations"]
        narrowed = {key: locations[key] for key in wanted if key in locations}
        return image, target, previous, {**properties, "class_locations": narrowed}


def location_keys(manager: Any) -> tuple[list[Any], list[tuple[int, ...]]]:
    """Return nnU-Net's keys of `class_locations`: those of the labels in their order, and those that always stay.

    `manager` is nnU-Net's LabelManager.
    """
    keys = manager.foreground_regions if manager.has_regions else np.array(manager.foreground_labels).tolist()
    always = [(-1, *np.array(manager.all_labels).tolist())] if manager.has_ignore_label else []
    return list(keys), always
