"""What nnU-Net requires of `labels` and `regions_class_order`, and what it accepts although its maps come out wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_conemos.annotations.labels import IGNORE, LabelSpace
from nnunetv2_conemos.datasets.label_maps import Signature, not_written, signatures
from nnunetv2_conemos.errors import SourceError, brief, shorten

ORDER = "regions_class_order"


def check_labels(dataset_json: Mapping[str, Any], consecutive: bool = True) -> LabelSpace:
    """Return the labels of a dataset.json; raises SourceError where nnU-Net refuses them, or would write wrong maps.

    Without `consecutive`, values may have gaps: a merge writes new ones.
    """
    labels, order = LabelSpace.from_dataset_json(dataset_json, consecutive), dataset_json.get(ORDER)
    if labels.has_regions:
        require_order(labels, order)
    judged = {name: value for name, value in dataset_json["labels"].items() if consecutive or name != IGNORE}
    try:
        LabelManager(judged, order)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:  # all that it raises
        raise SourceError(f"`labels`: nnU-Net refuses them: {brief(error)} Correct them.") from None
    return labels


def require_order(labels: LabelSpace, order: Any) -> None:
    """Raise SourceError where nnU-Net, writing region over region in this order, would lose regions of a prediction.

    That happens where a value does not belong to its region, or where later regions are written over it. What no order
    could write is no error here, see `never_written`.
    """
    if not isinstance(order, list | tuple) or len(order) != len(labels):
        raise SourceError(
            f"`{ORDER}`: expected one value for each of the {len(labels)} regions, which nnU-Net requires, found "
            f"{order!r:.80}. {_remedy(labels)}"
        )
    for name, values, value in zip(labels.names, labels.values, order, strict=True):
        if type(value) is not int or value not in values:
            raise SourceError(
                f"`{ORDER}`: expected for region '{name}' one of its own values, {shorten(map(str, values))}, found "
                f"{value!r:.80}: predictions of it would become something else. {_remedy(labels)}"
            )
    space, (names, best) = signatures(labels.names, labels.values), best_order(labels)
    lost = not_written(labels.names, order, space)
    if len(lost) > len(not_written(names, best, space)):
        raise SourceError(
            f"`{ORDER}`: expected an order in which no region is written over another one, found {list(order)} for "
            f"{', '.join(labels.names)}: a voxel of {_regions(lost[0])} alone would become another. {_remedy(labels)}"
        )


def never_written(labels: LabelSpace) -> list[str]:
    """Return the sets of regions, as text, that label maps hold and that no order of nnU-Net's can write."""
    space, (names, order) = signatures(labels.names, labels.values), best_order(labels)
    return [_regions(lost) for lost in not_written(names, order, space)] if labels.has_regions else []


def best_order(labels: LabelSpace) -> tuple[Sequence[str], Sequence[int]]:
    """Return regions from large to small, and for each the value that belongs to it and to as little else as possible.

    Where regions contain each other or are disjoint, every voxel of a prediction gets its value back.
    """
    space, values = signatures(labels.names, labels.values), dict(zip(labels.names, labels.values, strict=True))
    names = sorted(labels.names, key=lambda name: -len(values[name]))
    return names, [min(values[name], key=lambda value: (len(space[value]), value)) for name in names]


def _regions(signature: Signature) -> str:
    return " and ".join(map(repr, sorted(signature)))


def _remedy(labels: LabelSpace) -> str:
    names, order = best_order(labels)
    return f'Write the regions in the order {", ".join(names)}, and "{ORDER}": {list(order)}.'
