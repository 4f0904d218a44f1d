"""Write a raw dataset from the cases of others: images are referenced, linked or copied, label maps rewritten.

Every image is read once, so that a damaged file is found now, not in the middle of preprocessing. Axis letters:
***S** space.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_conemos.datasets.geometry import Grid, as_sitk, grid_of_header, reoriented, reoriented_array
from nnunetv2_conemos.datasets.label_maps import lookup
from nnunetv2_conemos.datasets.readers import reader_as_stored, reader_of
from nnunetv2_conemos.datasets.volumes import (
    RESAMPLE,
    Volume,
    naming,
    read_image,
    read_label_map,
    require_same_grid,
    spacing_file,
    write_image,
    write_label_map,
)
from nnunetv2_conemos.errors import InputError, MissingFileError, SourceError, VolumeError, shorten
from nnunetv2_conemos.parallel import in_processes

Images = Literal["reference", "link", "copy"]  # how the images of another dataset are kept in a new one


class CaseJob(NamedTuple):
    """A case to write: its id, its images in channel order, its label map (None: unlabelled) and the new values.

    `values` maps every value that the label map may hold to a new one; any other is an error. `ending` and `reader` are
    those of the files to read; `channels` is how many they must hold together.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None
    values: Mapping[int, int]
    ending: str
    reader: BaseReaderWriter
    channels: int


class CaseDigest(NamedTuple):
    """Content of the original files of a case: the values of its label map, digest and orientation of its image."""

    values: frozenset[int]
    image: str
    orientation: str


def jobs_of(dataset_json: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> list[CaseJob]:
    """Return a job for each case of a raw dataset, as yet without new values."""
    if not files:
        raise MissingFileError("the dataset has no case. Images are imagesTr/CASE_0000.FILE_ENDING.")
    reader = reader_of(dataset_json, Path(next(iter(files.values()))["images"][0]))
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    return [
        CaseJob(str(case), tuple(map(Path, entry["images"])), Path(entry["label"]), {}, ending, reader, channels)
        for case, entry in files.items()
    ]


def input_files(jobs: Iterable[CaseJob]) -> list[Path]:
    """Return all files that jobs read."""
    return [file for job in jobs for file in (*job.images, *([job.label] if job.label else []))]


def write_cases(
    jobs: Sequence[CaseJob],
    folder: Path,
    ending: str,
    images: Images,
    processes: int,
    title: str,
    orientation: str | None = None,
) -> dict[str, CaseDigest]:
    """Write `labelsTr` and, unless images are only referenced, `imagesTr`; return the digest of each case.

    Images with another ending than `ending` are converted, whatever `images` says; with an `orientation` (such as LPS),
    all images and label maps are brought to it, and none is only referenced. Raises SourceError for values that are not
    mapped, VolumeError (an OSError) for files that cannot be used, or where image and label map lie on two grids.
    """
    (folder / "labelsTr").mkdir()
    if images != "reference" or orientation or any(job.ending != ending for job in jobs):
        (folder / "imagesTr").mkdir()
    of_each = [(job, folder, ending, images, orientation) for job in jobs]
    found = in_processes(write_case, of_each, processes, title)
    return {job.case: digest for job, digest in zip(jobs, found, strict=True)}


def dataset_entries(jobs: Sequence[CaseJob], ending: str) -> dict[str, dict[str, Any]]:
    """Return nnU-Net's `dataset` key of dataset.json, which lets images lie elsewhere; links are not followed."""
    return {
        job.case: {
            "images": [
                os.path.abspath(file) if job.ending == ending else f"imagesTr/{job.case}_{channel:04d}{ending}"
                for channel, file in enumerate(job.images)
            ],
            "label": f"labelsTr/{job.case}{ending}",
        }
        for job in jobs
    }


def write_case(job: CaseJob, folder: Path, ending: str, images: Images, orientation: str | None = None) -> CaseDigest:
    """Write one case and return its digest; see `write_cases`."""
    with naming(job.case):
        image = read_image(job.images, job.reader, job.channels)
        label, values = read_label(job, image)
        output = folder / "labelsTr" / f"{job.case}{ending}"
        if orientation and image.grid.orientation != orientation:
            turned = turn(image, orientation, job.images[0])
            channels = [reoriented_array(channel, image.grid, orientation) for channel in image.data]
            write_image(as_sitk(compact(reoriented_array(label, image.grid, orientation)), turned), output)
            write_channels(job, channels, turned, folder, ending)
        elif job.ending != ending:
            write_image(as_sitk(compact(label), image.grid), output)
            write_channels(job, list(image.data), image.grid, folder, ending)
        else:
            write_label_map(label, output, job.reader, image.properties)
            keep_images(job, image, folder, "copy" if orientation and images == "reference" else images)
    return CaseDigest(values, digest_of(image.data), file_orientation(job, image.grid))


def digest_of(image: np.ndarray) -> str:
    """Return a text that only images of the same shape and voxels share."""
    return f"{image.shape} {blake2b(np.ascontiguousarray(image).data, digest_size=16).hexdigest()}"


def file_orientation(job: CaseJob, grid: Grid) -> str:
    """Return the orientation of the files of a case; a reader that reorients delivers another."""
    header = grid_of_header(job.images[0], reader_as_stored(job.reader))
    return (header or grid).orientation


def read_label(job: CaseJob, image: Volume) -> tuple[np.ndarray, frozenset[int]]:
    """Return a label map [*S] with its new values, and the set of its old ones; raises what `write_cases` does."""
    if job.label is None:
        return np.zeros(image.data.shape[1:], dtype=np.uint16), frozenset()
    if not job.label.is_file():
        raise VolumeError(f"expected a label map {job.label}, found none.", "Write it, or declare the case unlabelled.")
    own = read_label_map(job.label, job.reader)
    require_same_grid(image.grid, own.grid, (job.images[0], job.label), RESAMPLE)
    found = np.unique(own.data)
    foreign = [value for value in found.tolist() if value not in job.values]
    if foreign:
        raise SourceError(
            f"case '{job.case}': expected the values of `labels`, {shorten(map(str, sorted(job.values)))}, in "
            f"{job.label}, found {shorten(f'{value:g}' for value in foreign)}. Correct the map or `labels`."
        )
    return lookup(job.values)[own.data], frozenset(map(int, found))


def turn(image: Volume, orientation: str, file: Path) -> Grid:
    """Return the grid of an image in another orientation; raises VolumeError where it has none."""
    if not image.grid.orientation:
        raise VolumeError(
            f"{file}: expected a volume whose header says how it is oriented, found none of that.",
            "Leave the orientation as it is.",
        )
    return reoriented(image.grid, orientation)


def compact(array: np.ndarray) -> np.ndarray:
    """Return an array as 8 or 16 bit integers, where these hold the same values."""
    low, high = float(array.min()), float(array.max())
    for kind in (np.uint8, np.int16, np.uint16):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max and (array == np.rint(array)).all():
            return array.astype(kind)
    return array


def write_channels(job: CaseJob, channels: Sequence[np.ndarray], grid: Grid, folder: Path, ending: str) -> None:
    """Write the channels [*S] of a case to files of another kind or orientation."""
    names = channel_files(job, folder, ending)
    if len(channels) != len(names):
        raise VolumeError(
            f"expected one channel in each of {shorten(map(str, job.images))}, found {len(channels)} in all.",
            f"Colour images cannot be converted to {ending}; write one file per channel.",
        )
    for name, channel in zip(names, channels, strict=True):
        write_image(as_sitk(compact(channel), grid), name)


def keep_images(job: CaseJob, image: Volume, folder: Path, images: Images) -> None:
    """Link or copy the images of a case to `imagesTr`, unless they are only referenced."""
    if images == "reference":
        return
    for name, file in zip(channel_files(job, folder, job.ending), job.images, strict=True):
        name.symlink_to(os.path.abspath(file)) if images == "link" else shutil.copyfile(file, name)
    if isinstance(job.reader, Tiff3DIO):
        spacing = {"spacing": list(image.properties["spacing"])}
        spacing_file(folder / "imagesTr" / f"{job.case}_0000{job.ending}").write_text(json.dumps(spacing))


def channel_files(job: CaseJob, folder: Path, ending: str) -> list[Path]:
    """Return the images of a case in a raw dataset, in order of channels."""
    return [folder / "imagesTr" / f"{job.case}_{channel:04d}{ending}" for channel in range(len(job.images))]


def common_ending(endings: Sequence[str], wanted: str | None = None) -> str:
    """Choose the ending of all files: the wanted or else the most frequent one; if they differ, one of SimpleITK's."""
    choice = wanted or max(dict.fromkeys(endings), key=endings.count)
    if {choice} != set(endings) and choice not in SimpleITKIO.supported_file_endings:
        if wanted:
            raise InputError(
                f"file ending '{wanted}': files can be converted to {shorten(SimpleITKIO.supported_file_endings)} only."
            )
        return ".nii.gz"
    return choice
