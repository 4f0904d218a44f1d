"""DICOM series with DICOM segmentations: frames are put where their positions say, and nothing is resampled.

Where the frames lie on voxels of the image, turned or not, the structures are on its grid; otherwise they keep their
own. Segments of a FRACTIONAL segmentation are where at least half of its maximum is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_conemos.conversion.dicom_cases import Drawing, References, find_cases, require_different
from nnunetv2_conemos.conversion.dicom_files import SEG, Header, frame_place, read_header
from nnunetv2_conemos.conversion.found import Drawn, FoundCase, Structure
from nnunetv2_conemos.conversion.series import axes_of, read_series, read_volume
from nnunetv2_conemos.datasets.geometry import APART, Grid, corners_apart, ras_affine, reoriented, reoriented_array
from nnunetv2_conemos.datasets.volumes import Volume, reading
from nnunetv2_conemos.errors import VolumeError

ALL = ""  # in place of the number of a segment: the frame holds numbers of segments
HALF = 0.5  # of the maximum of a FRACTIONAL segmentation
OFF_PLANE = 0.1  # of the distance between frames, by which one may be out of place
THICK = 1.5  # slices of the image: a frame that is thicker was not drawn on them
PARALLEL = 0.999  # cosine of the angle between frames and slices of the image
EXPORT = "Export it again, or take this file away."
TAGS = ("PatientID", "SegmentationType", "SegmentSequence", "ReferencedSeriesSequence", "FrameOfReferenceUID")


class Frames(NamedTuple):
    """The frames of a segmentation: the segment that each shows (or ALL), its place along z of `grid`, and from which
    value on a voxel belongs to it; and what is odd about them."""

    dataset: Any
    numbers: list[str]
    places: list[int]
    half: float
    grid: Grid
    notes: tuple[str, ...]


class DicomSegLayout:
    """A tree of DICOM series and segmentations (BINARY, FRACTIONAL, LABELMAP) of any number of patients."""

    name = "dicomseg"

    def find(self, source: Path) -> list[FoundCase]:
        """Return a case per series; raises InputError that lists all that cannot be used."""
        return find_cases(source, SEG, drawing_of)

    def read_image(self, case: FoundCase) -> Volume:
        """Read the series of a case; raises VolumeError."""
        return read_volume(read_series(case.images))

    def read_structures(self, case: FoundCase, structures: Sequence[Structure], image: Volume) -> Iterator[Drawn]:
        """Yield these structures, on the grid of the image or their own; raises VolumeError that names the file."""
        file, frames = None, None
        for structure in structures:
            if frames is None or structure.file != file:
                file, frames = structure.file, read_frames(structure.file, image.grid)
            yield on_grid(mask_of(structure, frames), frames.grid, image.grid, frames.notes)


def drawing_of(file: Path) -> Drawing:
    """Read names and references of a segmentation, without its frames; raises VolumeError."""
    dataset = read_header(file, TAGS)
    with reading(file):
        kind = str(dataset.get("SegmentationType", ""))
        segments = [s for s in dataset.get("SegmentSequence") or [] if kind != "LABELMAP" or s.SegmentNumber != 0]
        structures = tuple(
            Structure(
                str(segment.get("SegmentLabel") or "").strip() or f"segment {segment.SegmentNumber}",
                file,
                str(segment.SegmentNumber),
            )
            for segment in segments
        )
        require_different(structures, file)
        series = dataset.get("ReferencedSeriesSequence") or []
        instances = {
            str(one.get("ReferencedSOPInstanceUID", ""))
            for each in series
            for one in each.get("ReferencedInstanceSequence") or []
        }
        references = References(
            frozenset({str(each.get("SeriesInstanceUID", "")) for each in series} - {""}),
            frozenset(instances - {""}),
            frozenset({str(dataset.get("FrameOfReferenceUID", ""))}),
        )
        return Drawing(file, str(dataset.get("PatientID") or "").strip(), structures, references)


def read_frames(file: Path, image: Grid) -> Frames:
    """Read where the frames of a segmentation lie, on the smallest grid that holds all of them; raises VolumeError."""
    from pydicom import dcmread

    with reading(file):
        dataset = dcmread(file, force=True)
        kind = str(dataset.get("SegmentationType", "BINARY"))
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
        groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
        number = int(dataset.get("NumberOfFrames") or 1)
        if len(groups) != number:
            raise VolumeError(f"{file}: expected {number} positions of frames, found {len(groups)}.", EXPORT)
        shape = (int(dataset.Rows), int(dataset.Columns))
        places, grid = lay_out([_header(file, group, shared) for group in groups], shape, image)
        numbers = [ALL if kind == "LABELMAP" else number_of(group, shared) for group in groups]
        half = HALF * float(dataset.get("MaximumFractionalValue") or 1) if kind == "FRACTIONAL" else HALF
    notes = ("FRACTIONAL segmentation: taken where at least half",) if kind == "FRACTIONAL" else ()
    return Frames(dataset, numbers, places, half, grid, notes)


def mask_of(structure: Structure, frames: Frames) -> np.ndarray:
    """Read the mask [*S] of a segment, empty where no frame shows it; raises VolumeError."""
    mask = np.zeros(frames.grid.size[::-1], dtype=bool)
    shown = [index for index, number in enumerate(frames.numbers) if number in (structure.key, ALL)]
    with reading(structure.file):
        for index, values in zip(shown, pixels_of(frames.dataset, shown), strict=True):
            is_label = frames.numbers[index] == ALL
            mask[frames.places[index]] |= (values == int(structure.key)) if is_label else values >= frames.half
    return mask


def pixels_of(dataset: Any, shown: Sequence[int]) -> Iterable[np.ndarray]:
    """Return some of the frames [rows,columns], one by one where pydicom can: all segments may not fit into memory.

    It cannot where frames of single bits do not end with a byte.
    """
    from pydicom.pixels import iter_pixels

    if not shown:
        return ()
    if dataset.BitsAllocated == 1 and dataset.Rows * dataset.Columns % 8:
        pixels = dataset.pixel_array
        return pixels[list(shown)] if pixels.ndim == 3 else pixels[None]
    return iter_pixels(dataset, indices=list(shown))


def number_of(group: Any, shared: Any) -> str:
    """Return the number of the segment that a frame shows."""
    name = "SegmentIdentificationSequence"
    found = group.get(name) or shared.get(name)
    return str(found[0].ReferencedSegmentNumber)


def _header(file: Path, group: Any, shared: Any) -> Header:
    place = frame_place(group, shared)
    if not (place["spacing"] and place["orientation"] and place["position"]):
        raise VolumeError(
            f"{file}: expected position, orientation and spacing of every frame, found a frame without.", EXPORT
        )
    return Header(file, "", "", SEG, "", "", "", "", 0, "", False, (), 1, **place)


def lay_out(frames: Sequence[Header], shape: tuple[int, ...], image: Grid) -> tuple[list[int], Grid]:
    """Return the place of each frame along z, and the grid on which they lie; raises VolumeError for uneven ones."""
    first = frames[0]
    if len({frame.orientation for frame in frames}) > 1 or len({frame.spacing for frame in frames}) > 1:
        raise VolumeError(f"{first.file}: expected frames of one orientation and spacing, found several.", EXPORT)
    row, column = axes_of(first)
    normal = np.cross(row, column)
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    lowest, along = positions[along.argmin()], along - along.min()
    aside = float(np.abs(positions - lowest - np.outer(along, normal)).max())
    for step in distances(first, along, normal, image):
        places = along / step
        if np.abs(places - places.round()).max() <= OFF_PLANE and aside < APART * min(first.spacing):
            break
    else:
        raise VolumeError(f"{first.file}: expected frames at even distances above one another, found others.", EXPORT)
    spacing = (first.spacing[1], first.spacing[0], step)
    affine = ras_affine(spacing, lowest, np.column_stack([row, column, normal]).ravel().tolist())
    size = (shape[1], shape[0], int(places.max().round()) + 1)
    return places.round().astype(int).tolist(), Grid(size, spacing, affine)


def distances(first: Header, along: np.ndarray, normal: np.ndarray, image: Grid) -> list[float]:
    """Return distances that frames may have, the likeliest first: named in the file, of the image, and the smallest.

    Frames without voxels are left out of most files, so gaps may be wide; frames thicker than the slices of the image
    are on another grid.
    """
    assert image.affine is not None
    edges = image.affine[:3, :3] / image.spacing
    parallel = np.abs((normal * [-1, -1, 1]) @ edges)
    slices = image.spacing[int(parallel.argmax())]
    thin = first.thickness is None or first.thickness < THICK * slices
    gaps = np.diff(np.unique(np.round(along, 3)))
    candidates = (
        first.apart,
        slices if thin and parallel.max() > PARALLEL else None,
        float(gaps.min()) if len(gaps) else first.thickness,
    )
    return [distance for distance in candidates if distance]


def on_grid(mask: np.ndarray, own: Grid, image: Grid, notes: tuple[str, ...]) -> Drawn:
    """Return a mask [*S] on the grid of the image, where its voxels are voxels of the image; else on its own grid."""
    assert own.affine is not None
    assert image.affine is not None
    turned, grid = reoriented_array(mask, own, image.orientation), reoriented(own, image.orientation)
    assert grid.affine is not None
    start = np.linalg.solve(image.affine, grid.affine[:, 3])[:3].round().astype(int)
    moved = image.affine.copy()
    moved[:3, 3] += image.affine[:3, :3] @ start
    if corners_apart(Grid(grid.size, image.spacing, moved), grid) >= APART:
        return Drawn(mask, own, notes)
    whole = np.zeros(image.size[::-1], dtype=bool)
    low = np.maximum(start, 0)
    high = np.maximum(np.minimum(start + grid.size, image.size), low)
    there = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    here = tuple(slice(a, b) for a, b in zip((low - start)[::-1], (high - start)[::-1], strict=True))
    whole[there] = turned[here]
    lost = int(turned.sum()) - int(whole.sum())
    return Drawn(whole, image, (*notes, f"{lost} voxel(s) lie outside the image and are left out") if lost else notes)
