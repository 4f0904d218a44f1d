"""Image tags, the key `tags` of a dataset.json: the slices in which a label is present, where no map shows the label.

Axis letters: **D** slices, **K** labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from nnunetv2_conemos.errors import Location, SourceError, describe, dotted

Axis = Literal["x", "y", "z"]
ARRAY_AXIS: dict[Axis, int] = {"z": 0, "y": 1, "x": 2}  # of the arrays of nnU-Net's readers
Slice = Annotated[StrictInt, Field(ge=0)]
Present = bool | tuple[int, ...]


class Tags(BaseModel):
    """Image tags: case -> label -> all slices along `axis` of the image file, counted from 0, that show the label.

    `false`: absent from the whole volume. `true`: present somewhere, which says nothing about a single slice unless the
    volume has only one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    axis: Axis = "z"
    cases: dict[str, dict[str, StrictBool | tuple[Slice, ...]]] = {}


def parse_tags(raw: Any) -> Tags:
    """Read `tags` of a dataset.json; raises SourceError that names case, label and slice."""
    try:
        tags = Tags.model_validate(raw)
    except ValidationError as error:
        raise SourceError(
            f"`tags`: {describe(error, place_in_tags)}. Example: "
            '{"axis": "z", "cases": {"case_1": {"tumour": [17, 18, 19]}, "case_2": {"tumour": false}}}'
        ) from None
    for case, labels in tags.cases.items():
        for label, slices in labels.items():
            if isinstance(slices, tuple) and len(set(slices)) < len(slices):
                twice = next(number for number in slices if slices.count(number) > 1)
                raise SourceError(f"`tags`, case '{case}', label '{label}': slice {twice} is named twice. Remove one.")
    return tags


def place_in_tags(location: Location) -> str:
    """Return a place in `tags` in words; pydantic names the key, the case, the label, the type tried, and the entry."""
    if location[:1] != ("cases",):
        return dotted(location)
    parts = [f"{name} '{value}'" for name, value in zip(("case", "label"), location[1:3], strict=False)]
    return ", ".join([*parts, *(f"entry {value}" for value in location[3:] if isinstance(value, int))]) or "cases"


def joined_tags(own: Mapping[str, Present], parts: Mapping[str, Collection[str]]) -> dict[str, Present]:
    """Return tags under other names, `parts` being name -> the labels that make it up, all of which must be tagged."""
    return {name: union([own[o] for o in owns]) for name, owns in parts.items() if own.keys() >= set(owns)}


def union(tags: Collection[Present]) -> Present:
    """Return where any of several labels is present."""
    if any(tag is True for tag in tags):
        return True
    return tuple(sorted({number for tag in tags if not isinstance(tag, bool) for number in tag}))


def without_tags(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataset.json without its tags, for methods that do not learn from them."""
    sources = {
        name: {key: value for key, value in source.items() if key != "tagged"}
        for name, source in dataset_json["sources"].items()
    }
    return {**{key: value for key, value in dataset_json.items() if key != "tags"}, "sources": sources}


def check_tags_fit(tags: Tags, tagged: Mapping[str, Collection[str]]) -> None:
    """Raise SourceError where `tags` do not match what sources declare as `tagged` (case -> labels)."""
    problems = [f"case '{case}' is not in this dataset" for case in tags.cases if case not in tagged]
    for case, labels in tagged.items():
        given = tags.cases.get(case, {})
        problems += [f"case '{case}' has no entry for label '{label}'" for label in labels if label not in given]
        problems += [
            f"case '{case}' has an entry for label '{label}', which its source does not declare as `tagged`"
            for label in given
            if label not in labels
        ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise SourceError(f"`tags`: {'; '.join(problems[:8])}{more}. Correct `tags` or `tagged` of the source.")


def possible_labels(tags: Mapping[str, Present], names: Collection[str]) -> Bool[np.ndarray, " K"]:
    """Return boolean [K]: the labels that a volume may show, that is, all not tagged as absent from the whole of it."""
    return np.array([tags.get(name, True) not in (False, ()) for name in names])


def slices_of(mask: Bool[np.ndarray, "*S"], axis: Axis) -> tuple[int, ...]:
    """Return a mask as a tag: the slices along `axis` in which it has voxels."""
    others = tuple(other for other in ARRAY_AXIS.values() if other != ARRAY_AXIS[axis])
    return tuple(np.flatnonzero(mask.any(others)).tolist())


def slices_with(present: Present, slices: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what a tag says about slices, boolean [D] each: whether the label is present, whether that is known.

    Raises SourceError, starting with `where`, for slices that do not exist.
    """
    if isinstance(present, bool):
        return np.full(slices, present), np.full(slices, not present or slices == 1)
    beyond = [number for number in present if number >= slices]
    if beyond:
        raise SourceError(
            f"{where}: tagged in slice {beyond[0]}, but the image has {slices} slices along this axis, counted from 0. "
            "Correct `tags` or its `axis`."
        )
    return np.isin(np.arange(slices), present), np.ones(slices, dtype=bool)


def slices_by_label(tags: Mapping[str, Present], slices: int, case: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return `slices_with` for every label that a case is tagged for."""
    return {name: slices_with(tag, slices, f"`tags`, case '{case}', label '{name}'") for name, tag in tags.items()}
