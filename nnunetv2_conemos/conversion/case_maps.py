"""Pass 1: read a case once, write its image, and compose its structures into one map of codes.

A code stands for a set of labels, so that nothing is decided yet about voxels of several labels. A case that is done
has a record, by which a later run with the same files and settings skips it. Axis letters: ***S** space.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

import nnunetv2_conemos
from nnunetv2_conemos.annotations.labels import MAX_VALUE
from nnunetv2_conemos.conversion.found import FoundCase, Layout, Structure
from nnunetv2_conemos.conversion.grids import place
from nnunetv2_conemos.conversion.patterns import ending_of
from nnunetv2_conemos.conversion.segment_files import count_values
from nnunetv2_conemos.datasets.geometry import as_sitk
from nnunetv2_conemos.datasets.volumes import Volume, write_image, write_label_map
from nnunetv2_conemos.datasets.writer import CaseJob, Images, compact, digest_of, keep_images, write_channels
from nnunetv2_conemos.errors import ConemosError, FileError, VolumeError
from nnunetv2_conemos.files import write_json

CODES, RECORDS = "codes", "records"  # folders of an unfinished import
Empty = Literal["absent", "unknown"]


class CaseSettings(NamedTuple):
    """How every case is read and written: `folder` is that of the unfinished import, `ending` that of its files."""

    layout: Layout
    folder: Path
    ending: str
    images: Images
    channels: int
    resample: bool
    empty: Empty
    anonymous: bool


class CaseTask(NamedTuple):
    """A case to read: what was found, its id in the result, and label -> the structure that shows it."""

    found: FoundCase
    case: str
    structures: Mapping[str, Structure]


@dataclass(frozen=True)
class CaseRecord:
    """What a case shows: `codes[i]` is the set of labels of code i, and `voxels[i]` how many voxels have it.

    `annotated` are the labels that are present or known to be absent. `problem` says why the case cannot be imported.
    `key` stands for its files and settings, `image` for the voxels of its image.
    """

    case: str
    key: str
    codes: tuple[tuple[str, ...], ...] = ()
    voxels: tuple[int, ...] = ()
    annotated: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    image: str = ""
    orientation: str = ""
    problem: str = ""


def key_of(task: CaseTask, settings: CaseSettings) -> str:
    """Return a hash of the files of a case (path, size, time) and of all settings that its files depend on."""
    files = {*task.found.images, *(structure.file for structure in task.structures.values())}
    files = sorted(files.union(*(file.parent.glob(f"{escape(file.stem)}.*raw") for file in files if is_header(file))))
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    how = repr(settings._replace(folder=Path()))
    content = (nnunetv2_conemos.__version__, task.case, task.found, sorted(task.structures.items()), facts, how)
    return sha256(repr(content).encode(errors="surrogatepass")).hexdigest()


def is_header(file: Path) -> bool:
    """Return whether the voxels of a file lie in another one beside it, `.raw` or `.zraw`."""
    return file.suffix.lower() == ".mhd"


def read_case(task: CaseTask, settings: CaseSettings) -> CaseRecord:
    """Return the record of a case, after reading it or, where that was done before, from its file.

    What is wrong with the case is returned as its problem, so that all cases are looked at.
    """
    key = key_of(task, settings)
    file = settings.folder / RECORDS / f"{task.case}.json"
    before = read_record(file)
    if (
        before is not None
        and before.key == key
        and (settings.folder / CODES / f"{task.case}{settings.ending}").is_file()
    ):
        return before
    try:
        record = convert_case(task, settings, key)
    except (ConemosError, MemoryError) as error:
        if isinstance(error, FileError) and not isinstance(error, VolumeError):
            raise  # such as a full disk
        return CaseRecord(
            task.case, key, problem=str(error) or "there is not enough memory: use fewer processes (-np)."
        )
    write_json(file, asdict(record))
    return record


def read_record(file: Path) -> CaseRecord | None:
    """Return the record of a case that was read in an earlier run; None where there is none that is whole."""
    try:
        content = json.loads(file.read_text())
        lists = {name: tuple(content[name]) for name in ("voxels", "annotated", "notes")}
        return CaseRecord(**{**content, **lists, "codes": tuple(map(tuple, content["codes"]))})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def convert_case(task: CaseTask, settings: CaseSettings, key: str) -> CaseRecord:
    """Read a case, write its image and its map of codes, and return its record; raises VolumeError."""
    image = settings.layout.read_image(task.found)
    if len(image.data) != settings.channels:
        raise VolumeError(
            f"{task.found.origin}: expected {settings.channels} channel(s) as in --channels or the first case, found "
            f"{len(image.data)}.",
            "Add the missing image, or import these cases into a dataset of their own.",
        )
    composed = compose(task, settings, image)
    converted = write_case_image(task, settings, image)
    file = settings.folder / CODES / f"{task.case}{settings.ending}"
    if converted or "sitk_stuff" not in image.properties:
        write_image(as_sitk(compact(composed.map), image.grid), file)
    else:
        write_label_map(composed.map, file, SimpleITKIO(), image.properties)
    return CaseRecord(
        task.case,
        key,
        tuple(tuple(sorted(code)) for code in composed.codes),
        tuple(composed.voxels),
        tuple(composed.annotated),
        (*task.found.notes, *composed.notes),
        digest_of(image.data),
        image.grid.orientation,
    )


class Composed(NamedTuple):
    """A map of codes [*S] of uint16, the set of labels and the number of voxels of each code, and what was noted."""

    map: np.ndarray
    codes: list[frozenset[str]]
    voxels: list[int]
    annotated: list[str]
    notes: list[str]


def compose(task: CaseTask, settings: CaseSettings, image: Volume) -> Composed:
    """Read the structures of a case, one after the other, into one map of codes; raises VolumeError."""
    codes: dict[frozenset[str], int] = {frozenset(): 0}
    voxels = np.zeros(image.data.shape[1:], dtype=np.uint16)
    annotated, notes, places = [], [], {}
    structures = list(task.structures.values())
    drawn = settings.layout.read_structures(task.found, structures, image)
    for label, structure, own in zip(task.structures, structures, drawn, strict=True):
        what = f"'{structure.name}' in {structure.file}"
        mask, how = place(own, image.grid, settings.resample, what)
        if how:
            places.setdefault(how, []).append(structure.name)
        notes += [f"'{structure.name}': {note}" for note in own.notes]
        if add_label(label, mask, voxels, codes) or settings.empty == "absent":
            annotated.append(label)
        if own.mask.any() and not mask.any():
            meant = "absent" if settings.empty == "absent" else "not annotated"
            notes.append(f"'{structure.name}': no voxel of it is left within the image, so it counts as {meant}")
    notes += [f"{len(names)} structure(s) {how}: {', '.join(names)}" for how, names in places.items()]
    counts = count_values(voxels)
    return Composed(voxels, list(codes), [counts.get(code, 0) for code in range(len(codes))], annotated, notes)


def add_label(label: str, mask: np.ndarray, voxels: np.ndarray, codes: dict[frozenset[str], int]) -> bool:
    """Add a label to the voxels [*S] of a mask, giving codes to new sets of labels; return whether it has any voxel."""
    here = voxels[mask]
    if not here.size:
        return False
    table = np.arange(len(codes), dtype=np.uint16)
    known = list(codes)
    for code in np.flatnonzero(np.bincount(here)).tolist():
        table[code] = codes.setdefault(known[code] | {label}, len(codes))
        if len(codes) > MAX_VALUE:
            raise VolumeError(f"more than {MAX_VALUE} different overlaps of labels.", "Import fewer labels at a time.")
    voxels[mask] = table[here]
    return True


def write_case_image(task: CaseTask, settings: CaseSettings, image: Volume) -> bool:
    """Write or link the image of a case, unless it is only referenced; return whether it was converted."""
    found, native = task.found, is_native(task.found.images, settings)
    files = found.images if native else found.images[:1] * settings.channels
    job = CaseJob(task.case, files, None, {}, settings.ending, SimpleITKIO(), settings.channels)
    for channel in range(settings.channels):
        (settings.folder / "imagesTr" / f"{task.case}_{channel:04d}{settings.ending}").unlink(missing_ok=True)
    if native and not settings.anonymous:
        keep_images(job, image, settings.folder, settings.images)
        return False
    write_channels(job, list(image.data), image.grid, settings.folder, settings.ending)
    return True


def is_native(images: Iterable[Path], settings: CaseSettings) -> bool:
    """Return whether the images of a case can be kept as they are: one file per channel, with the ending wanted."""
    files = list(images)
    return len(files) == settings.channels and all(ending_of(file) == settings.ending for file in files)
