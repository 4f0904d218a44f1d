"""Write a raw dataset from the cases of others: images are referenced, linked or copied, label maps rewritten.

Every image is read once, so that a damaged file is found now, not in the middle of preprocessing. Axis letters:
***S** space.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from hashlib import blake2b
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import SimpleITK
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_conemos.datasets.geometry import Grid, as_sitk, first_difference, grid_of_array, in_words
from nnunetv2_conemos.datasets.label_maps import lookup
from nnunetv2_conemos.errors import FileError, InputError, MissingFileError, SourceError, brief, shorten
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
    """Content of the original files of a case: the values of its label map, and a digest of its image."""

    values: frozenset[int]
    image: str


def reader_of(dataset_json: Mapping[str, Any], example: Path) -> BaseReaderWriter:
    """Build a reader of nnU-Net's for a raw dataset that can read the example; raises ValueError where none can."""
    try:
        with redirect_stderr(StringIO()):  # tracebacks of readers that were tried
            return determine_reader_writer_from_dataset_json(dict(dataset_json), str(example), verbose=False)()
    except RuntimeError as error:
        raise InputError(
            f"{error} Restore the file, or correct `file_ending` or `overwrite_image_reader_writer` in dataset.json."
        ) from None


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
    jobs: Sequence[CaseJob], folder: Path, ending: str, images: Images, processes: int, title: str
) -> dict[str, CaseDigest]:
    """Write `labelsTr` and, unless images are only referenced, `imagesTr`; return the digest of each case.

    Images with another ending than `ending` are converted, whatever `images` says. Raises SourceError for values that
    are not mapped, ValueError where image and label map do not lie on one grid, OSError for files that cannot be read.
    """
    (folder / "labelsTr").mkdir()
    if images != "reference" or any(job.ending != ending for job in jobs):
        (folder / "imagesTr").mkdir()
    found = in_processes(write_case, [(job, folder, ending, images) for job in jobs], processes, title)
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


def write_case(job: CaseJob, folder: Path, ending: str, images: Images) -> CaseDigest:
    """Write one case and return its digest; see `write_cases`."""
    data, properties = _read(job.case, job.reader.read_images, [str(file) for file in job.images], "image")
    if len(data) != job.channels:
        raise InputError(
            f"case '{job.case}': expected {job.channels} channel(s) as in dataset.json, found {len(data)} in "
            f"{shorten(map(str, job.images))}. Add the files, or remove the case."
        )
    label, values = np.zeros(data.shape[1:], dtype=np.uint16), frozenset[int]()
    if job.label is not None:
        label, values = read_label(job, data.shape[1:], properties)
    output = folder / "labelsTr" / f"{job.case}{ending}"
    if job.ending == ending:
        write_seg(job.reader, label, output, properties)
    else:
        SimpleITK.WriteImage(
            as_sitk(label.astype(np.uint8 if label.max() < 256 else np.uint16), properties), str(output), True
        )
    write_images(job, data, properties, folder, ending, images)
    digest = blake2b(np.ascontiguousarray(data).data, digest_size=16).hexdigest()
    return CaseDigest(values, f"{data.shape} {digest}")


def write_seg(reader: BaseReaderWriter, label: np.ndarray, file: Path, properties: dict[str, Any]) -> None:
    """Write a label map [*S] with nnU-Net's reader; raises ValueError where that reader cannot write its values."""
    reader.write_seg(label, str(file), properties)
    if label.max() > 255 and (reader.read_seg(str(file))[0][0] != label).any():
        raise InputError(
            f"{file.name}: {type(reader).__name__} cannot write label values above 255, found {label.max()}. Use "
            "another reader (`overwrite_image_reader_writer` in dataset.json), or fewer labels."
        )


def read_label(job: CaseJob, shape: tuple[int, ...], image: Mapping[str, Any]) -> tuple[np.ndarray, frozenset[int]]:
    """Return a label map [*S] with its new values, and the set of its old ones; raises what `write_cases` does."""
    if not Path(job.label or "").is_file():
        raise MissingFileError(
            f"case '{job.case}': expected a label map {job.label}, found none. Write it, or "
            "declare the case unlabelled."
        )
    data, properties = _read(job.case, job.reader.read_seg, str(job.label), "label map")
    require_same_grid(job, grid_of_array(data.shape[1:], properties), grid_of_array(shape, image))
    found = np.unique(data)
    foreign = [value for value in found.tolist() if value not in job.values]
    if foreign:
        raise SourceError(
            f"case '{job.case}': expected the values of `labels`, {shorten(map(str, sorted(job.values)))}, in "
            f"{job.label}, found {shorten(f'{value:g}' for value in foreign)}. Correct the map or `labels`."
        )
    return lookup(job.values)[data[0].astype(np.intp)], frozenset(map(int, found))


def require_same_grid(job: CaseJob, label: Grid, image: Grid) -> None:
    """Raise ValueError where the label map of a case does not lie on the grid of its image."""
    if name := first_difference(image, label):
        raise InputError(
            f"case '{job.case}': {name} of {job.label} differs from its image: expected {in_words(image[name])} as in "
            f"{job.images[0]}, found {in_words(label[name])}. Resample the label map onto the image."
        )


def _read(case: str, read: Any, file: Any, what: str) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        return read(file)
    except Exception as error:  # each image library raises its own
        raise FileError(f"case '{case}': {what} {file} cannot be read: {brief(error)}. Restore the file.") from None


def write_images(
    job: CaseJob, data: np.ndarray, properties: Mapping[str, Any], folder: Path, ending: str, images: Images
) -> None:
    """Write, link or copy the images of a case to `imagesTr`, unless they are only referenced."""
    names = [folder / "imagesTr" / f"{job.case}_{channel:04d}{ending}" for channel in range(len(job.images))]
    if job.ending != ending:
        if len(data) != len(names):
            raise InputError(
                f"case '{job.case}': expected one channel in each of {shorten(map(str, job.images))}, found "
                f"{len(data)} in all. Colour images cannot be converted to {ending}; write one file per channel."
            )
        for name, channel in zip(names, data, strict=True):
            SimpleITK.WriteImage(as_sitk(channel, properties), str(name), True)
    elif images != "reference":
        for name, file in zip(names, job.images, strict=True):
            name.symlink_to(os.path.abspath(file)) if images == "link" else shutil.copyfile(file, name)
        write_spacing(job, properties, folder)


def write_spacing(job: CaseJob, properties: Mapping[str, Any], folder: Path) -> None:
    """Write the file in which nnU-Net keeps the spacing of a 3D tiff image, beside the image."""
    if isinstance(job.reader, Tiff3DIO):
        (folder / "imagesTr" / f"{job.case}.json").write_text(json.dumps({"spacing": list(properties["spacing"])}))


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
