"""The labels or regions of a dataset, in the order of nnU-Net's output heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_conemos.annotations.names import is_text
from nnunetv2_conemos.errors import SourceError, did_you_mean, shorten

BACKGROUND, IGNORE = "background", "ignore"  # names that nnU-Net reserves
MAX_VALUE = 65535  # of a label map: nnU-Net's readers write 16 bits


@dataclass(frozen=True)
class LabelSpace:
    """The foreground labels or regions of a dataset, in the order of nnU-Net's output heads.

    `values[k]` are the label-map values that make up `names[k]`; `ignore` is nnU-Net's ignore value or None.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    has_regions: bool
    ignore: int | None

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any], consecutive: bool = True) -> LabelSpace:
        """Read `labels` of a dataset.json.

        Raises SourceError for wrong types, and where the values are not 1, 2, ... with the ignore label last, which
        nnU-Net needs; without `consecutive`, only where they contradict each other.
        """
        values, ignore = parse_values(dataset_json.get("labels"))
        has_regions = any(len(v) > 1 for v in values.values())
        if not has_regions:
            values = dict(sorted(values.items(), key=lambda item: item[1]))
        require_distinct(values, ignore, has_regions)
        if consecutive:
            require_consecutive(values, ignore)
        return cls(tuple(values), tuple(values.values()), has_regions, ignore)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str, where: str) -> int:
        """Return the column of a label; raises SourceError, starting with `where`, for an unknown name."""
        if name in self.names:
            return self.names.index(name)
        raise SourceError(
            f"{where}: '{name}' is not a label or region of this dataset ({', '.join(self.names)})."
            f"{did_you_mean(name, self.names)}"
        )


def parse_values(labels: Any) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Return the values of each foreground label, and nnU-Net's ignore value; raises SourceError for wrong types."""
    if not isinstance(labels, Mapping) or not labels:
        raise SourceError(
            f"`labels`: expected an object name -> value, found {labels!r:.80}. "
            'Example: {"background": 0, "liver": 1}'
        )
    old = [name for name, value in labels.items() if isinstance(value, str) and str(name).isdecimal()]
    if old:
        raise SourceError(
            f"`labels`: expected name -> value, found value -> name for {shorten(old)}, as in nnU-Net v1. "
            'Turn them round: "liver": 1.'
        )
    if BACKGROUND not in labels:
        raise SourceError(
            f'`labels`: expected "{BACKGROUND}": 0, which nnU-Net requires, found {shorten(map(repr, labels))}. Add it.'
        )
    background, ignore = labels[BACKGROUND], labels.get(IGNORE)
    if type(background) is not int or background != 0:
        raise SourceError(f"`labels`, '{BACKGROUND}': expected 0, found {background!r:.80}. Correct it.")
    if ignore is not None and type(ignore) is not int:
        raise SourceError(f"`labels`, '{IGNORE}': expected one integer, found {ignore!r:.80}. Correct it.")
    foreground = {name: value for name, value in labels.items() if name not in (BACKGROUND, IGNORE)}
    if not foreground:
        raise SourceError("`labels`: expected at least one label besides background, found none. Name what is shown.")
    require_names(foreground)
    values = {name: value_tuple(name, value) for name, value in foreground.items()}
    return values, None if ignore is None else value_tuple(IGNORE, ignore)[0]


def value_tuple(name: str, value: Any) -> tuple[int, ...]:
    """Return the values of a label or region; raises SourceError for anything but integers of a label map."""
    listed = tuple(value) if isinstance(value, list | tuple) else (value,)
    whole = all(type(v) is int and 0 <= v <= MAX_VALUE for v in listed)
    if not listed or not whole or len(set(listed)) < len(listed):
        raise SourceError(
            f"`labels`, '{name}': expected an integer from 0 to {MAX_VALUE}, or a list of different ones for a region, "
            f"found {value!r:.80}. Correct it."
        )
    return listed


def require_names(names: Iterable[str]) -> None:
    """Raise SourceError for names of labels that tables and messages could not show."""
    strange = [repr(name) for name in names if not name or name.strip() != name or not is_text(name)]
    if strange:
        raise SourceError(
            f"`labels`: expected names in one line, without spaces around them, found {shorten(strange)}. Rename them."
        )


def require_distinct(values: Mapping[str, tuple[int, ...]], ignore: int | None, has_regions: bool) -> None:
    """Raise SourceError where labels contain background or the ignore value, or share a value in label mode."""
    for name, its_values in values.items():
        if 0 in its_values:
            raise SourceError(
                f"`labels`, '{name}': expected values other than 0, which is background, found {[*its_values]}. "
                "Remove the label, or give it the value that the label maps have."
            )
        if ignore in its_values:
            raise SourceError(
                f"`labels`, '{IGNORE}': expected a value of its own, the highest, found {ignore}, which is a value of "
                f"'{name}' too. Correct one of them."
            )
    if ignore == 0:
        raise SourceError(f"`labels`, '{IGNORE}': expected the highest value, found 0, which is background. Change it.")
    shared: dict[tuple[int, ...], list[str]] = {}
    for name, its_values in values.items():
        shared.setdefault(tuple(sorted(its_values)), []).append(name)
    for its_values, names in shared.items():
        if len(names) > 1 and not has_regions:
            raise SourceError(
                f"`labels`: expected a value for each label, found {its_values[0]} for {' and '.join(names)}. "
                "Correct or remove one of them."
            )


def require_consecutive(values: Mapping[str, tuple[int, ...]], ignore: int | None) -> None:
    """Raise SourceError where the values are not 1, 2, ..., with the ignore value after all others."""
    found = sorted({v for its_values in values.values() for v in its_values})
    if found != list(range(1, len(found) + 1)):
        raise SourceError(
            f"`labels`: expected consecutive label ids, 1 to {len(found)}, found {shorten(map(str, found), 20)}. "
            "Renumber them, in the label maps too (`conemos merge` of the one dataset does it)."
        )
    if ignore not in (None, len(found) + 1):
        raise SourceError(
            f"`labels`, '{IGNORE}': expected {len(found) + 1}, the value after all others, found {ignore}. Renumber "
            "it, in the label maps too (`conemos merge` of the one dataset does it)."
        )
