"""Make a volume of the slices of a DICOM series: their order and grid from the headers, then their voxels.

Slices are sorted by their position along the normal of their planes, never by number or name. A series whose slices do
not make up one regular grid is an error that says which of them, and is never interpolated.

Axis letters: **C** channel, ***S** space in the order of nnU-Net's arrays (z, y, x), where z counts slices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_conemos.conversion.dicom_files import Header, headers_of, require_dicom
from nnunetv2_conemos.datasets.geometry import Grid, in_words, ras_affine
from nnunetv2_conemos.datasets.volumes import Volume, reading
from nnunetv2_conemos.datasets.whole_file import require_finite
from nnunetv2_conemos.errors import VolumeError, shorten

UNEVEN = 0.1  # of the distance between slices, by which one may be out of place: positions are rounded
SHIFTED = 0.5  # voxels by which a slice may lie beside the one below the whole stack
ORTHONORMAL = 1e-2  # by which lengths and angles of direction cosines may be off: some are rounded to few digits
UPRIGHT = 0.999  # cosine of the angle to the axis of the body above which slices count as axial
MOVE = "If it is not to be imported, move it out of the folder."
DECODERS = 'pip install "pylibjpeg[all]"'


class Series(NamedTuple):
    """Slices in order, the grid that they make up, and what is odd about them; notes name no patient and no file."""

    slices: tuple[Header, ...]
    grid: Grid
    notes: tuple[str, ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """All files in order of slices; one that holds many slices once."""
        return tuple(dict.fromkeys(header.file for header in self.slices))


def name_of(slices: Sequence[Header]) -> str:
    """Return the words by which messages name a series: its patient, its UID and its folder."""
    first = slices[0]
    return f"patient '{first.patient}', series {first.series} in {first.file.parent}"


def read_series(files: Path | Iterable[Path]) -> Series:
    """Read the headers of a series, of all files in a folder or of those given; raises VolumeError, as `assemble`."""
    require_dicom()
    if isinstance(files, Path):
        files = sorted(file for file in files.iterdir() if file.is_file()) if files.is_dir() else [files]
    files = list(files)
    slices = [header for file in files for header in headers_of(file) if header.is_slice]
    if not slices:
        raise VolumeError(
            f"{shorten(map(str, files), 2)}: expected slices of a DICOM series, found none.", "Name others."
        )
    found = {header.series: str(header.file) for header in slices}
    if len(found) > 1:
        raise VolumeError(
            f"expected the slices of one series, found {len(found)} in {shorten(found.values(), 2)}.",
            "Name the files of one.",
        )
    return assemble(slices)


def read_volume(series: Series) -> Volume:
    """Read the voxels [C,*S] of a series, with slope and intercept of each slice; raises VolumeError."""
    columns, rows, count = series.grid.size
    data = np.empty((1, count, rows, columns), dtype=np.float32)
    by_file = groupby(enumerate(series.slices), key=lambda item: item[1].file)
    for file, group in by_file:
        pixels = read_pixels(file)
        for place, header in group:
            data[0, place] = pixels[header.frame or 0]
    require_finite(data.size - int(np.isfinite(data).sum()), name_of(series.slices))
    return Volume(data, properties_of(series.grid), series.grid)


def properties_of(grid: Grid) -> dict[str, Any]:
    """Return the properties that nnU-Net's reader SimpleITKIO would give for a volume on this grid."""
    assert grid.affine is not None
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    direction = (lps[:3, :3] / np.asarray(grid.spacing)).ravel().tolist()
    own = {"spacing": grid.spacing, "origin": tuple(lps[:3, 3].tolist()), "direction": tuple(direction)}
    return {"sitk_stuff": own, "spacing": list(reversed(grid.spacing))}


def read_pixels(file: Path) -> np.ndarray:
    """Read the frames [F,rows,columns] of a file as real-world values; raises VolumeError."""
    from pydicom import dcmread
    from pydicom.pixels import get_decoder

    with reading(file):
        dataset = dcmread(file, force=True)
        syntax = dataset.file_meta.TransferSyntaxUID
        if syntax.is_compressed and not syntax.is_deflated and not get_decoder(syntax).is_available:
            raise VolumeError(f"{file}: is compressed as '{syntax.name}', and no decoder is installed.", DECODERS)
        pixels = dataset.pixel_array
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        frames = dataset.get("PerFrameFunctionalGroupsSequence") or [dataset] * len(pixels)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
        return np.stack([_rescaled(values, frame, shared) for values, frame in zip(pixels, frames, strict=True)])


def _rescaled(pixels: np.ndarray, frame: Any, shared: Any) -> np.ndarray:
    name = "PixelValueTransformationSequence"
    group = frame.get(name) or (shared.get(name) if shared is not None else None)
    source = group[0] if group else frame
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    values = pixels * (1.0 if slope is None else float(slope)) + (0.0 if intercept is None else float(intercept))
    return values.astype(np.float32)


def assemble(slices: Sequence[Header]) -> Series:
    """Sort slices into a volume; raises VolumeError that names patient, series and files where they are not one."""
    where, files = name_of(slices), len(slices)
    slices = list({(header.uid, header.frame, header.position): header for header in reversed(slices)}.values())
    copies = files - len(slices)
    require_alike(slices, where)
    row, column = axes_of(slices[0])
    normal = np.cross(row, column)
    slices.sort(key=lambda header: float(np.dot(header.position, normal)))
    positions = np.array([header.position for header in slices])
    height = distance_of(slices, positions @ normal, where)
    require_upright(slices, positions, (row, column), where)
    spacing = (slices[0].spacing[1], slices[0].spacing[0], height)
    affine = ras_affine(spacing, positions[0], np.column_stack([row, column, normal]).ravel().tolist())
    notes = [f"{copies} slice(s) are there twice, in files with the same UID; one of each is used"] if copies else []
    if abs(normal[2]) < UPRIGHT:
        notes.append(f"its slices are not axial: their normal is {in_words(normal.tolist())} in LPS+")
    return Series(tuple(slices), Grid((*slices[0].size, len(slices)), spacing, affine), tuple(notes))


def require_alike(slices: Sequence[Header], where: str) -> None:
    """Raise VolumeError for slices in several frames of reference, of several sizes and so on, or in colour."""
    kinds = {
        "frame of reference": lambda header: header.reference,
        "size": lambda header: header.size,
        "pixel spacing": lambda header: tuple(round(value, 4) for value in header.spacing),
        "orientation": lambda header: tuple(round(value, 3) + 0.0 for value in header.orientation),
    }
    for name, of in kinds.items():
        counts = Counter(map(of, slices)).most_common()
        if len(counts) > 1:
            odd = [header.file.name for header in slices if of(header) != counts[0][0]]
            raise VolumeError(
                f"{where}: expected one {name} in all slices, found {len(counts)}: {counts[0][0]} in most, "
                f"{counts[1][0]} in {odd[0]}; {len(odd)} of {len(slices)} slices differ from the most frequent one.",
                "Give each volume a series of its own, or remove what does not belong.",
            )
    coloured = [header.file.name for header in slices if header.samples > 1]
    if coloured:
        raise VolumeError(f"{where}: expected one number per voxel, found colours in {shorten(coloured, 2)}.", MOVE)


def axes_of(header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors along a row and along a column of a slice; raises VolumeError where they are not such."""
    row, column = np.reshape(header.orientation, (2, 3))
    lengths = np.linalg.norm([row, column], axis=1)
    if not (np.abs(lengths - 1) < ORTHONORMAL).all() or abs(row @ column) > ORTHONORMAL:
        raise VolumeError(
            f"{header.file}: expected rows and columns at right angles, found {in_words(header.orientation)}.", MOVE
        )
    if not min(header.spacing) > 0:
        raise VolumeError(f"{header.file}: expected a positive pixel spacing, found {in_words(header.spacing)}.", MOVE)
    row = row / lengths[0]
    column = column - (column @ row) * row
    return row, column / np.linalg.norm(column)


def distance_of(slices: Sequence[Header], along: np.ndarray, where: str) -> float:
    """Return the distance in mm between slices at sorted positions; raises VolumeError where it is not even."""
    if len(slices) == 1:
        if not (slices[0].apart or slices[0].thickness):
            raise VolumeError(f"{where}: expected several slices, or a thickness, found one slice without it.", MOVE)
        return slices[0].apart or slices[0].thickness or 0.0
    gaps = np.diff(along)
    usual = float(np.percentile(gaps, 50, method="lower"))
    same = np.flatnonzero(gaps < UNEVEN * max(usual, 0.01))
    if len(same):
        pair = " and ".join(header.file.name for header in slices[same[0] : same[0] + 2])
        raise VolumeError(
            f"{where}: expected one slice at each position, found {len(same)} more, such as {pair} at "
            f"{along[same[0]]:.6g} mm.",
            "It holds several volumes (phases, echoes, reconstructions) or a slice twice: keep one of each.",
        )
    step = float(along[-1] - along[0]) / (len(slices) - 1)
    if np.abs(along - along[0] - step * np.arange(len(slices))).max() <= UNEVEN * step:
        return step
    raise uneven(slices, along, usual, where)


def uneven(slices: Sequence[Header], along: np.ndarray, usual: float, where: str) -> VolumeError:
    """Return the error for slices at uneven distances: missing ones where gaps are multiples of the usual distance."""
    gaps = [(float(b - a), a, b, s) for (a, b), s in zip(pairwise(along), slices, strict=False)]
    wide = [gap for gap in gaps if abs(gap[0] - usual) > UNEVEN * usual]
    if wide and all(abs(gap / usual - round(gap / usual)) < 2 * UNEVEN and gap > usual for gap, *_ in wide):
        missing = sum(round(gap / usual) - 1 for gap, *_ in wide)
        places = shorten((f"{a:.6g} and {b:.6g} mm (after {s.file.name})" for _, a, b, s in wide), 3)
        return VolumeError(
            f"{where}: expected a slice every {usual:.6g} mm, found {missing} missing between {places}.",
            f"Restore them. {MOVE}",
        )
    distances = [gap for gap, *_ in gaps]
    return VolumeError(
        f"{where}: expected slices at even distances, found {min(distances):.6g} to {max(distances):.6g} mm.",
        f"Resample it and import it as NIfTI. {MOVE}",
    )


def require_upright(
    slices: Sequence[Header], positions: np.ndarray, axes: tuple[np.ndarray, np.ndarray], where: str
) -> None:
    """Raise VolumeError for slices that do not lie straight above one another, as those of a tilted gantry."""
    moved = [(positions - positions[0]) @ axis / size for axis, size in zip(axes, slices[0].spacing[::-1], strict=True)]
    furthest = float(np.abs(moved).max())
    if furthest >= SHIFTED:
        worst = slices[int(np.abs(moved).max(axis=0).argmax())].file.name
        raise VolumeError(
            f"{where}: expected slices straight above one another, found {worst} {furthest:.3g} voxels beside the "
            "first (a sheared volume, most often of a tilted gantry).",
            f"Resample it to upright slices and import it as NIfTI. {MOVE}",
        )
