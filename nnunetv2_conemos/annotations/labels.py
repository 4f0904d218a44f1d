"""The labels or regions of a dataset, in the order of nnU-Net's output heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_conemos.errors import SourceError, did_you_mean


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
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> LabelSpace:
        """Read `labels` of a dataset.json.

        Raises SourceError where label ids are not 1..K in label mode, which nnU-Net's argmax needs.
        """
        labels = dict(dataset_json["labels"])
        ignore = labels.pop("ignore", None)
        ignore = None if ignore is None else int(ignore)
        values = {name: tuple(map(int, v)) if isinstance(v, list | tuple) else (int(v),) for name, v in labels.items()}
        foreground = {name: v for name, v in values.items() if set(v) != {0}}
        has_regions = any(len(v) > 1 for v in foreground.values())
        if not has_regions:
            foreground = dict(sorted(foreground.items(), key=lambda item: item[1]))
            ids = [v[0] for v in foreground.values()]
            if ids != list(range(1, len(ids) + 1)):
                raise SourceError(
                    f"`labels`: expected consecutive label ids, 1 to {len(ids)}, found {ids}. Renumber them."
                )
        return cls(tuple(foreground), tuple(foreground.values()), has_regions, ignore)

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
