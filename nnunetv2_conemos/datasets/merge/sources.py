"""Records of the datasets of a merge, as read: one per dataset, one per case, under the names of the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from nnunetv2_conemos.annotations.tags import Axis, Present
from nnunetv2_conemos.datasets.label_maps import Signature
from nnunetv2_conemos.datasets.merge.spec import DatasetSpec


class Facts(NamedTuple):
    """Entries of a case's source besides its labels; the modality is by default that of its channels."""

    modality: str
    dataset: str | None = None
    domain: str | None = None
    weight: float = 1.0

    def entry(self) -> dict[str, Any]:
        """Return the keys of a source, without what is left at its default."""
        return {key: value for key, value in self._asdict().items() if value != self._field_defaults.get(key)}


@dataclass(frozen=True)
class SourceCase:
    """One case of a dataset: its id in the result, its files, its annotated labels, and the facts of its source.

    `label` is None where nothing is annotated; `annotated` are the labels that somebody looked for. `patient` is None
    where none is declared.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    annotated: frozenset[str]
    facts: Facts
    tags: dict[str, Present]
    patient: str | None = None

    @property
    def tagged(self) -> tuple[str, ...]:
        """Labels of which tags say in which slices they are present."""
        return tuple(sorted(self.tags))


class SourceLabels(NamedTuple):
    """The labels of a dataset under merged names.

    `space`: value of its label maps -> labels; `renamed`: own name -> merged name, None where the label was dropped;
    `ignore`: nnU-Net's ignore value.
    """

    space: dict[int, Signature]
    renamed: dict[str, str | None]
    ignore: int | None

    @property
    def names(self) -> set[str]:
        """Merged names of all labels of the dataset."""
        return set().union(*self.space.values())


class FileFormat(NamedTuple):
    """File ending, nnU-Net's reader, and the reader's name where dataset.json requires a certain one."""

    ending: str
    reader: BaseReaderWriter
    required_reader: str | None


@dataclass(frozen=True)
class SourceDataset:
    """One dataset of a merge: `cases` under their ids in that dataset; its channels in order, by own and merged names.

    `tag_axis`: the axis along which its tags count slices; None where it has no tags.
    """

    name: str
    spec: DatasetSpec
    cases: dict[str, SourceCase]
    labels: SourceLabels
    own_channels: tuple[str, ...]
    channels: tuple[str, ...]
    files: FileFormat
    tag_axis: Axis | None = None
