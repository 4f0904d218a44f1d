"""DICOM series with RT structure sets: contours become the voxels whose centres lie inside, slice by slice.

Nothing is interpolated: a slice without contours between two with contours stays empty, and is named in a note.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_conemos.conversion.contours import rasterise
from nnunetv2_conemos.conversion.dicom_cases import Drawing, References, find_cases, require_different
from nnunetv2_conemos.conversion.dicom_files import RTSTRUCT, read_header
from nnunetv2_conemos.conversion.found import Drawn, FoundCase, Structure
from nnunetv2_conemos.conversion.series import read_series, read_volume
from nnunetv2_conemos.datasets.geometry import Grid
from nnunetv2_conemos.datasets.volumes import Volume, reading
from nnunetv2_conemos.errors import VolumeError, shorten

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "")
OFF_PLANE = 0.2  # of the distance between slices, by which a contour may lie beside the plane of its slice
TAGS = ("PatientID", "StructureSetROISequence", "ReferencedFrameOfReferenceSequence")
DIGITS = 3  # of positions in pixels: a contour through centres of voxels must not depend on how mm were rounded
IGNORE = "Draw it on this series, or leave this structure out."


class RTStructLayout:
    """A tree of DICOM series and structure sets of any number of patients."""

    name = "rtstruct"

    def find(self, source: Path) -> list[FoundCase]:
        """Return a case per series; raises InputError that lists all that cannot be used."""
        return find_cases(source, RTSTRUCT, drawing_of)

    def read_image(self, case: FoundCase) -> Volume:
        """Read the series of a case; raises VolumeError."""
        return read_volume(read_series(case.images))

    def read_structures(self, case: FoundCase, structures: Sequence[Structure], image: Volume) -> Iterator[Drawn]:
        """Yield these structures, on the grid of the image; raises VolumeError that names file and structure."""
        file, contours = None, {}
        for structure in structures:
            if structure.file != file:
                file, contours = structure.file, contours_of(structure.file)
            yield draw(structure, contours.get(structure.key, []), image.grid)


def drawing_of(file: Path) -> Drawing:
    """Read names and references of a structure set, without its contours; raises VolumeError."""
    dataset = read_header(file, TAGS)
    with reading(file):
        rois = dataset.get("StructureSetROISequence") or []
        structures = tuple(
            Structure(str(roi.get("ROIName") or "").strip() or f"ROI {roi.ROINumber}", file, str(roi.ROINumber))
            for roi in rois
        )
        require_different(structures, file)
        frames = [str(roi.get("ReferencedFrameOfReferenceUID", "")) for roi in rois]
        return Drawing(file, str(dataset.get("PatientID") or "").strip(), structures, references_of(dataset, frames))


def references_of(dataset: Any, frames: Iterable[str]) -> References:
    """Return what a structure set refers to, in the frames of its regions or, where these name none, in all."""
    series, instances = set(), set()
    named = dataset.get("ReferencedFrameOfReferenceSequence") or []
    wanted = set(frames) - {""} or {str(frame.get("FrameOfReferenceUID", "")) for frame in named}
    for frame in named:
        if str(frame.get("FrameOfReferenceUID", "")) not in wanted:
            continue
        for study in frame.get("RTReferencedStudySequence") or []:
            for one in study.get("RTReferencedSeriesSequence") or []:
                series.add(str(one.get("SeriesInstanceUID", "")))
                images = one.get("ContourImageSequence") or []
                instances |= {str(image.get("ReferencedSOPInstanceUID", "")) for image in images}
    return References(frozenset(series - {""}), frozenset(instances - {""}), frozenset(wanted))


def contours_of(file: Path) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Return the contours of each region of a structure set by its number: geometric type, and points [n,3] in LPS+."""
    dataset = read_header(file)
    found: dict[str, list[tuple[str, np.ndarray]]] = defaultdict(list)
    with reading(file):
        if "ROIContourSequence" not in dataset:
            raise VolumeError(f"{file}: expected contours, found none at all: it may be cut off.", "Restore it.")
        for roi in dataset.ROIContourSequence or []:
            for contour in roi.get("ContourSequence") or []:
                points = points_of(contour)
                kind = str(contour.get("ContourGeometricType") or "")
                found[str(roi.ReferencedROINumber)].append((kind, points))
    return found


def points_of(contour: Any) -> np.ndarray:
    """Return the points [n,3] of a contour, from the bytes in the file, which is faster than pydicom."""
    if "ContourData" not in contour:
        return np.empty((0, 3))
    value = contour.get_item("ContourData").value
    if isinstance(value, bytes):
        value = value.rstrip(b" \0").split(b"\\") if value.strip(b" \0") else []
    return np.array(value, dtype=float).reshape(-1, 3)


def draw(structure: Structure, contours: Sequence[tuple[str, np.ndarray]], grid: Grid) -> Drawn:
    """Return the voxels of a structure; raises VolumeError for contours that are none of slices of this grid."""
    where = f"{structure.file}: structure '{structure.name}' (number {structure.key})"
    columns, rows, count = grid.size
    mask, notes = np.zeros((count, rows, columns), dtype=bool), []
    closed = [points for kind, points in contours if kind in CLOSED and len(points) > 2]
    if len(closed) < len(contours):
        open_ones = [(kind, len(points)) for kind, points in contours if kind not in CLOSED or len(points) < 3]
        kinds = sorted({kind if kind not in CLOSED else f"{count} point(s)" for kind, count in open_ones})
        found = f"{len(contours) - len(closed)} of {len(contours)} contours enclose nothing ({', '.join(kinds)})"
        if not closed:
            raise VolumeError(f"{where}: expected closed contours, found that {found}.", IGNORE)
        notes.append(found)
    by_slice, odd = in_slices(closed, grid, where)
    if closed and not by_slice:
        raise VolumeError(f"{where}: expected contours in the image, found all {len(closed)} outside of it.", IGNORE)
    for place, polygons in by_slice.items():
        mask[place] = rasterise(polygons, rows, columns)
    return Drawn(
        mask,
        grid,
        (*notes, *oddities(by_slice, mask), *(f"{number} contour(s) {what}" for what, number in odd.items())),
    )


def in_slices(closed: Sequence[np.ndarray], grid: Grid, where: str) -> tuple[dict[int, list[np.ndarray]], Counter[str]]:
    """Return the contours of each slice as points [n,2] in pixels, and how many are left out, and why."""
    assert grid.affine is not None
    to_index = np.linalg.inv(grid.affine) @ np.diag([-1.0, -1.0, 1.0, 1.0])
    by_slice: dict[int, list[np.ndarray]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for points in closed:
        if not np.isfinite(points).all():
            raise VolumeError(f"{where}: expected points in mm, found values that are not finite.", IGNORE)
        index = points @ to_index[:3, :3].T + to_index[:3, 3]
        depth = index[:, 2]
        place = round(float(depth.mean()))
        pixels = np.round(index[:, :2], DIGITS)
        beside = (pixels.max(axis=0) < -0.5) | (pixels.min(axis=0) > np.array(grid.size[:2]) - 0.5)
        if beside.any() or depth.max() < -OFF_PLANE or depth.min() > grid.size[2] - 1 + OFF_PLANE:
            left_out["lie outside the image and are left out"] += 1
        elif np.abs(depth - place).max() > OFF_PLANE:
            raise VolumeError(
                f"{where}: expected contours in the planes of slices, found one that reaches from {depth.min():.2f} to "
                f"{depth.max():.2f}, counted in slices from 0.",
                IGNORE,
            )
        elif any(np.array_equal(pixels, other) for other in by_slice[place]):
            left_out["are there twice; one of each is used"] += 1
        else:
            by_slice[place].append(pixels)
    return by_slice, left_out


def oddities(by_slice: dict[int, list[np.ndarray]], mask: np.ndarray) -> list[str]:
    """Return what a report should say of a structure's contours: beyond the edge, gaps, nothing enclosed."""
    notes, rows, columns = [], *mask.shape[1:]
    limits = np.array([columns, rows]) - 0.5
    beyond = [
        place
        for place, polygons in by_slice.items()
        if any((points < -0.5).any() or (points > limits).any() for points in polygons)
    ]
    if beyond:
        notes.append(f"contours reach beyond the edge of the image in {len(beyond)} slice(s) and are cut off there")
    drawn = sorted(by_slice)
    gaps = sorted(set(range(drawn[0], drawn[-1])) - set(drawn)) if drawn else []
    if gaps:
        notes.append(f"no contours in slice(s) {shorten(map(str, gaps))} between others: left empty, not interpolated")
    if by_slice and not mask.any():
        notes.append("its contours enclose no centre of a voxel")
    return notes
