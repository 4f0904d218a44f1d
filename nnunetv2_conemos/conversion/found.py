"""What a layout finds in a folder of files before any voxel is read, and how a layout is asked for voxels.

Axis letters: **C** channel, ***S** space, in the order of nnU-Net's arrays (z, y, x).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from nnunetv2_conemos.datasets.geometry import Grid
from nnunetv2_conemos.datasets.volumes import Volume


class Structure(NamedTuple):
    """One thing that somebody drew: its name as it stands in the files, its file, and what marks it in there.

    `key` is the label value of a map, the number of a segment or of a region of interest; empty for a mask file.
    """

    name: str
    file: Path
    key: str = ""


@dataclass(frozen=True)
class FoundCase:
    """A case: its images in order of channels (or all files of its DICOM series), and its structures.

    `origin` is the folder or file by which messages and the table of origins name it, `series` the UID of its DICOM
    series. `notes` say what was found odd and does not stop an import. `channels` are the names of its channels, where
    the files say them.
    """

    case: str
    origin: Path
    images: tuple[Path, ...]
    structures: tuple[Structure, ...]
    patient: str | None = None
    notes: tuple[str, ...] = ()
    series: str = ""
    channels: tuple[str, ...] = ()


class Drawn(NamedTuple):
    """A structure as voxels: boolean mask [*S] on its own grid, and what was found odd about it."""

    mask: np.ndarray
    grid: Grid
    notes: tuple[str, ...] = ()


class Layout(Protocol):
    """A way in which files are kept. Layouts hold settings only, so that they can be sent to other processes."""

    @property
    def name(self) -> str:
        """How `--layout` calls it."""
        ...

    def find(self, source: Path) -> list[FoundCase]:
        """Return all cases below a folder, sorted, from names and headers alone.

        Raises InputError or FileError for what cannot be understood.
        """
        ...

    def read_image(self, case: FoundCase) -> Volume:
        """Read the image [C,*S] of a case; raises VolumeError."""
        ...

    def read_structures(self, case: FoundCase, structures: Sequence[Structure], image: Volume) -> Iterable[Drawn]:
        """Read these structures of a case, in order, best one by one, since hundreds of them may not fit into memory.

        Raises VolumeError that names file and structure.
        """
        ...
