"""Voxels of several labels: counted for each pair, then made regions, or given to one label, or refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from nnunetv2_conemos.conversion.case_maps import CaseRecord
from nnunetv2_conemos.datasets.label_maps import Signature
from nnunetv2_conemos.errors import InputError, shorten

HOW = (
    "Say which label wins with --order (each label is written over those before it), keep nested labels as regions "
    "with --regions, or allow small overlaps, which go to the smaller label, with --max-overlap SHARE."
)


class Overlap(NamedTuple):
    """How many voxels two labels share, in which cases, and the share of the smaller one, over all cases with both."""

    labels: tuple[str, str]
    voxels: int
    cases: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        a, b = self.labels
        return (
            f"'{a}' and '{b}' share {self.voxels} voxels ({self.share:.2%} of the smaller) in {len(self.cases)} "
            f"case(s): {shorten(self.cases, 3)}"
        )


@dataclass(frozen=True)
class Resolution:
    """What becomes of voxels of several labels.

    `around` maps each label to the labels that it lies within, which become regions (empty in label mode); `strength`
    to a rank of its own: of labels that exclude each other, the strongest takes the voxel. `texts` say so pair by pair.
    """

    around: Mapping[str, frozenset[str]]
    strength: Mapping[str, tuple[int, int, int]]
    texts: tuple[str, ...]

    def whole(self, label: str) -> Signature:
        """Return a label and those that it lies within."""
        return frozenset({label, *self.around.get(label, frozenset())})

    def resolved(self, labels: Iterable[str]) -> Signature:
        """Return the labels that a voxel of these labels gets: those of a label mode map, or of nested regions."""
        labels = frozenset(labels)
        inner = [label for label in labels if not any(label in self.around.get(other, ()) for other in labels)]
        return self.whole(max(inner, key=lambda label: self.strength[label])) if inner else frozenset()


def resolve(
    records: Sequence[CaseRecord], labels: Sequence[str], order: Sequence[str], regions: bool, max_overlap: float
) -> Resolution:
    """Decide what becomes of all voxels of several labels; raises InputError for what nobody has decided."""
    if wrong := [label for label in order if label not in labels] or [x for x in order if order.count(x) > 1]:
        raise InputError(
            f"--order: expected labels of the dataset ({shorten(labels, 20)}), each once, found {wrong[0]}."
        )
    if not 0 <= max_overlap <= 1:
        raise InputError(f"--max-overlap: expected a share from 0 to 1, found {max_overlap:g}.")
    sizes = sizes_of(records)
    around = nested(records, labels) if regions else {}
    strength = {
        label: (order.index(label) + 1 if label in order else 0, -sizes.get(label, 0), -place)
        for place, label in enumerate(labels)
    }
    texts, refused = [], []
    for overlap in overlaps_of(records):
        a, b = overlap.labels
        inner = a if b in around.get(a, ()) else b if a in around.get(b, ()) else None
        if inner:
            texts.append(f"{overlap}: '{inner}' lies within '{b if inner == a else a}' in every case; regions")
        elif {a, b} & {*order} or overlap.share <= max_overlap:
            winner, how = (
                max(a, b, key=lambda label: strength[label]),
                "--order" if {a, b} & {*order} else "the smaller",
            )
            texts.append(f"{overlap}: given to '{winner}' ({how})")
        else:
            refused.append(f"{overlap}{'; one lies within the other in every case' * is_nested(records, a, b)}")
    if refused:
        lines = "\n".join(f"  {text}" for text in refused[:20])
        more = f"\n  and {len(refused) - 20} more" if len(refused) > 20 else ""
        raise InputError(f"{len(refused)} pair(s) of labels share voxels:\n{lines}{more}\n{HOW}")
    return Resolution(around, strength, tuple(texts))


def sizes_of(records: Iterable[CaseRecord]) -> dict[str, int]:
    """Return label -> its voxels in all cases."""
    sizes: dict[str, int] = {}
    for record in records:
        for code, voxels in zip(record.codes, record.voxels, strict=True):
            for label in code:
                sizes[label] = sizes.get(label, 0) + voxels
    return sizes


def overlaps_of(records: Iterable[CaseRecord]) -> list[Overlap]:
    """Return all pairs of labels that share voxels, those with the largest share first."""
    shared: dict[tuple[str, str], dict[str, int]] = {}
    sizes = {record.case: sizes_of([record]) for record in records}
    for record in records:
        for code, voxels in zip(record.codes, record.voxels, strict=True):
            for pair in combinations(code, 2) if voxels else ():
                counts = shared.setdefault(pair, {})
                counts[record.case] = counts.get(record.case, 0) + voxels
    totals: dict[tuple[str, str], int] = {}
    for pair in shared:
        both = [own for own in sizes.values() if own.get(pair[0]) and own.get(pair[1])]
        totals[pair] = min(sum(own[label] for own in both) for label in pair)
    found = [
        Overlap(pair, sum(counts.values()), tuple(counts), sum(counts.values()) / totals[pair])
        for pair, counts in shared.items()
    ]
    return sorted(found, key=lambda overlap: (-overlap.share, overlap.labels))


def nested(records: Sequence[CaseRecord], labels: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return label -> the labels within which all of its voxels lie, in every case that shows both.

    Raises InputError for two labels that are the same voxels in every case.
    """
    pairs = {overlap.labels for overlap in overlaps_of(records)}
    around: dict[str, set[str]] = {label: set() for label in labels}
    for a, b in pairs:
        within = [lies_within(records, *both) for both in ((a, b), (b, a))]
        if all(within):
            raise InputError(
                f"'{a}' and '{b}' are the same voxels in every case. Put both names under one label, or one "
                "under `ignore`."
            )
        if any(within):
            inner, outer = (a, b) if within[0] else (b, a)
            around[inner].add(outer)
    for label in labels:  # what lies within a region lies within those around it, annotated together or not
        around[label] |= {outer for region in _upwards(label, around) for outer in around[region]}
    return {label: frozenset(outer - {label}) for label, outer in around.items()}


def _upwards(label: str, around: Mapping[str, set[str]]) -> set[str]:
    found, todo = set[str](), [label]
    while todo:
        for outer in around[todo.pop()] - found:
            found.add(outer)
            todo.append(outer)
    return found


def is_nested(records: Sequence[CaseRecord], a: str, b: str) -> bool:
    """Return whether one of two labels lies within the other in every case that shows both."""
    return lies_within(records, a, b) or lies_within(records, b, a)


def lies_within(records: Iterable[CaseRecord], inner: str, outer: str) -> bool:
    """Return whether every voxel of a label belongs to another one, in each case that is annotated for both."""
    return not any(
        voxels and inner in code and outer not in code
        for record in records
        if outer in record.annotated
        for code, voxels in zip(record.codes, record.voxels, strict=True)
    )
