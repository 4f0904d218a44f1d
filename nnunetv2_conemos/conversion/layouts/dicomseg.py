"""DICOM series with DICOM segmentations: frames are put where their positions say, and nothing is resampled.

Where the frames lie on voxels of the image, turned or not, the structures are on its grid; otherwise they keep their
own. Segments of a FRACTIONAL segmentation are where at least half of its maximum is.
"""

from __future__ import annotations

from collections.abc import Sequence
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

HALF = 0.5  # of the maximum of a FRACTIONAL segmentation
OFF_PLANE = 0.1  # of the distance between frames, by which one may be out of place
THICK = 1.5  # slices of the image: a frame that is thicker was not drawn on them
PARALLEL = 0.999  # cosine of the angle between frames and slices of the image
EXPORT = "Export it again, or take this file away."
TAGS = ("PatientID", "SegmentationType", "SegmentSequence", "ReferencedSeriesSequence", "FrameOfReferenceUID")


class Frames(NamedTuple):
    """The voxels of a segmentation: `masks` maps the number of a segment to [*S] on `grid`; what is odd about them."""

    masks: dict[str, np.ndarray]
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

    def read_structures(self, case: FoundCase, structures: Sequence[Structure], image: Volume) -> list[Drawn]:
        """Read these structures, on the grid of the image or their own; raises VolumeError that names the file."""
        found = {}
        for file in dict.fromkeys(structure.file for structure in structures):
            keys = [structure.key for structure in structures if structure.file == file]
            found |= {(file, key): drawn for key, drawn in read_segments(file, keys, image.grid).items()}
        return [found[structure.file, structure.key] for structure in structures]


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
        require_different(structures)
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


def read_segments(file: Path, keys: Sequence[str], image: Grid) -> dict[str, Drawn]:
    """Return the segments with these numbers, empty ones where no frame shows them; raises VolumeError."""
    frames = read_frames(file, keys, image)
    return {key: on_grid(mask, frames.grid, image, frames.notes) for key, mask in frames.masks.items()}


def read_frames(file: Path, keys: Sequence[str], image: Grid) -> Frames:
    """Read the segments with these numbers on the smallest grid that holds all frames of the file."""
    from pydicom import dcmread

    with reading(file):
        dataset = dcmread(file, force=True)
        kind = str(dataset.get("SegmentationType", "BINARY"))
        pixels = dataset.pixel_array
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
        groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
        if len(groups) != len(pixels):
            raise VolumeError(f"{file}: expected {len(pixels)} positions of frames, found {len(groups)}.", EXPORT)
        places, grid = lay_out([_header(file, group, shared) for group in groups], pixels.shape[1:], image)
        masks = {key: np.zeros(grid.size[::-1], dtype=bool) for key in keys}
        half = HALF * float(dataset.get("MaximumFractionalValue") or 1) if kind == "FRACTIONAL" else HALF
        for values, group, place in zip(pixels, groups, places, strict=True):
            for key in keys if kind == "LABELMAP" else {number_of(group, shared)} & masks.keys():
                masks[key][place] |= (values == int(key)) if kind == "LABELMAP" else values >= half
    notes = ("FRACTIONAL segmentation: taken where at least half",) if kind == "FRACTIONAL" else ()
    return Frames(masks, grid, notes)


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
