"""Values of a label map as sets of labels, to treat nested regions, hidden labels and merged datasets alike.

A voxel belongs to a set of labels, its signature: one label in label mode, a region and those around it in region mode,
none in the background. Whatever is hidden, renamed or filled in changes signatures; values follow from them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.errors import SourceError

Signature = frozenset[str]
NOTHING: Signature = frozenset()


def signatures(names: Sequence[str], values: Sequence[Sequence[int]]) -> dict[int, Signature]:
    """Return label-map value -> the labels it belongs to; 0 belongs to none."""
    found: dict[int, set[str]] = {0: set()}
    for name, its_values in zip(names, values, strict=True):
        for value in its_values:
            found.setdefault(value, set()).add(name)
    return {value: frozenset(found[value]) for value in sorted(found)}


def shown(signature: Signature, annotated: Collection[str], value_of: Mapping[Signature, int]) -> int:
    """Return the lowest value that shows the annotated labels of a signature, and no other annotated label.

    Label mode: hidden labels become 0. Region mode: a hidden sub-region becomes the region around it.
    """
    known = set(annotated)
    visible = signature & known
    return min(value for other, value in value_of.items() if other & known == visible) if visible else 0


def visible_values(labels: LabelSpace, annotated: Collection[str]) -> dict[int, int]:
    """Return value -> the lowest value that looks the same to an annotator of these labels only; ignore stays."""
    space = signatures(labels.names, labels.values)
    value_of = {space[value]: value for value in sorted(space, reverse=True)}
    values = {value: shown(signature, annotated, value_of) for value, signature in space.items()}
    return values if labels.ignore is None else {**values, labels.ignore: labels.ignore}


def completion_table(labels: LabelSpace, annotated: Collection[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return `table[annotated value, predicted value]`, the completed value, and `left_open[annotated value]`.

    What is annotated stays as it is; of the values that agree with it, the one nearest to the prediction of the missing
    labels is taken, so a predicted sub-region outside its annotated region is dropped. `left_open` says where nothing
    is annotated and something may be missing. The ignore label stays.
    """
    known, space = set(annotated), signatures(labels.names, labels.values)
    size = 1 + max([*space, labels.ignore or 0])
    table = np.tile(np.arange(size, dtype=np.uint16)[:, None], (1, size))
    left_open = np.zeros(size, dtype=bool)
    for mine, signature in space.items():
        agreeing = [value for value, other in space.items() if other & known == signature & known]
        left_open[mine] = not signature & known and len({space[value] for value in agreeing}) > 1
        for predicted, wanted in space.items():
            far = {value: len((space[value] ^ wanted) - known) for value in agreeing}
            table[mine, predicted] = min(agreeing, key=lambda value: (far[value], value))
    return table, left_open


def union(spaces: Iterable[Mapping[int, Signature]]) -> tuple[list[str], list[Signature]]:
    """Return names and signatures of several label spaces, each once, in the order in which names first occur.

    A space that lacks a label says nothing about it: the tumour of a dataset without liver lies in the liver where
    every other dataset has it there. So a signature is left out where those that look the same to its space agree on
    more labels than it has.
    """
    spaces = list(spaces)
    names: dict[str, None] = {}
    met: dict[Signature, None] = {}
    for space in spaces:
        for _, signature in sorted(space.items()):
            names |= dict.fromkeys(sorted(signature - names.keys()))
            met |= {signature: None} if signature else {}
    kept = [s for s in met if any(is_whole(s, space, met) for space in spaces if s in space.values())]
    order = list(names)
    return order, sorted(kept, key=lambda signature: sorted(map(order.index, signature)))


def is_whole(signature: Signature, space: Mapping[int, Signature], pool: Iterable[Signature]) -> bool:
    """Return whether a signature of a space means itself among all signatures, rather than one with more labels."""
    seen = frozenset().union(*space.values())
    others = [other for other in pool if other != signature and other & seen == signature]
    return not others or frozenset.intersection(*others) == signature


def label_entries(names: Sequence[str], values: Sequence[Signature]) -> tuple[dict[str, int | list[int]], list[int]]:
    """Build `labels` and `regions_class_order` of a dataset.json; `values[i]` is the signature of the value i + 1.

    The order is empty in label mode. nnU-Net writes regions one over the other: large ones come first, and each is
    written as the value that belongs to it and to as little else as possible. Raises SourceError for two names of the
    same voxels.
    """
    of = {name: [v for v, signature in enumerate(values, 1) if name in signature] for name in names}
    equal = [(a, b) for a, b in combinations(names, 2) if of[a] == of[b]]
    if equal:
        raise SourceError(f"'{equal[0][0]}' and '{equal[0][1]}' are the same voxels everywhere. Rename or drop one.")
    by_size = sorted(names, key=lambda name: -len(of[name]))  # stable: equal regions keep their order
    labels: dict[str, int | list[int]] = {"background": 0}
    if all(len(signature) == 1 for signature in values):
        return labels | {name: of[name][0] for name in names}, []
    labels |= {name: of[name][0] if len(of[name]) == 1 else of[name] for name in by_size}
    return labels, [min(of[name], key=lambda v: (len(values[v - 1]), v)) for name in by_size]


def not_written(names: Sequence[str], order: Sequence[int], space: Mapping[int, Signature]) -> list[Signature]:
    """Return signatures that nnU-Net cannot write: their regions, predicted together, become another value.

    `order[i]` is the value that is written for the region `names[i]`, over those before it; `space`: value -> regions.
    """
    lost = []
    for signature in dict.fromkeys(filter(None, space.values())):
        written = [value for name, value in zip(names, order, strict=True) if name in signature][-1]
        if space.get(written) != signature:
            lost.append(signature)
    return lost


def lookup(mapping: Mapping[int, int]) -> np.ndarray:
    """Return a uint16 array such that `array[label map]` applies a mapping of values; values in between become 0."""
    table = np.zeros(max(mapping) + 1, dtype=np.uint16)
    table[list(mapping)] = list(mapping.values())
    return table
