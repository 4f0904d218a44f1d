"""Write the cases of a raw dataset from those of others: images referenced, linked or copied, label maps rewritten.

Every image is read once, so that a damaged file is found now and not in the middle of preprocessing.
Axis letters: ***S** space.
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

from nnunetv2_conemos.datasets.label_maps import lookup
from nnunetv2_conemos.errors import SourceError, brief, shorten
from nnunetv2_conemos.parallel import in_processes

Images = Literal["reference", "link", "copy"]
GEOMETRY = ("spacing", "origin", "direction")


class CaseJob(NamedTuple):
    """A case to be written: its id, its images in channel order, its label map (None: unlabelled) and the new values.

    `values` maps every value that the label map may hold; any other is an error. `ending` and `reader` are those of
    the files read; `channels` is how many they must hold together.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None
    values: Mapping[int, int]
    ending: str
    reader: BaseReaderWriter
    channels: int


class Held(NamedTuple):
    """What the files of a case held: the values of its label map, and a digest of its image."""

    values: frozenset[int]
    image: str


def reader_of(dataset_json: Mapping[str, Any], example: Path) -> BaseReaderWriter:
    """nnU-Net's reader of a raw dataset, one that can read the example; raises ValueError where there is none."""
    try:
        with redirect_stderr(StringIO()):  # tracebacks of readers that were tried
            return determine_reader_writer_from_dataset_json(dict(dataset_json), str(example), verbose=False)()
    except RuntimeError as error:
        raise ValueError(
            f"{error} Restore the file, or correct `file_ending` or `overwrite_image_reader_writer` in dataset.json."
        ) from None


def jobs_of(dataset_json: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> list[CaseJob]:
    """The cases of a raw dataset as they are, without new values yet."""
    if not files:
        raise FileNotFoundError("the dataset holds no case. Images are imagesTr/CASE_0000.FILE_ENDING.")
    reader = reader_of(dataset_json, Path(next(iter(files.values()))["images"][0]))
    ending, channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    return [
        CaseJob(str(case), tuple(map(Path, entry["images"])), Path(entry["label"]), {}, ending, reader, channels)
        for case, entry in files.items()
    ]


def input_files(jobs: Iterable[CaseJob]) -> list[Path]:
    """Everything that jobs read."""
    return [file for job in jobs for file in (*job.images, *([job.label] if job.label else []))]


def write_cases(
    jobs: Sequence[CaseJob], folder: Path, ending: str, images: Images, processes: int, title: str
) -> dict[str, Held]:
    """Write `labelsTr` and, unless images are only referenced, `imagesTr`; returns what each case held before.

    Images with another ending than `ending` are converted whatever `images` says. Raises SourceError for values that
    are not mapped, ValueError where image and label map do not lie on one grid, OSError for unreadable files.
    """
    (folder / "labelsTr").mkdir()
    if images != "reference" or any(job.ending != ending for job in jobs):
        (folder / "imagesTr").mkdir()
    found = in_processes(write_case, [(job, folder, ending, images) for job in jobs], processes, title)
    return {job.case: held for job, held in zip(jobs, found, strict=True)}


def dataset_entries(jobs: Sequence[CaseJob], ending: str) -> dict[str, dict[str, Any]]:
    """nnU-Net's `dataset` key of dataset.json, which lets images lie elsewhere; links are left as they are."""
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


def write_case(job: CaseJob, folder: Path, ending: str, images: Images) -> Held:
    """Write one case."""
    data, grid = _read(job.case, job.reader.read_images, [str(file) for file in job.images], "image")
    if len(data) != job.channels:
        raise ValueError(
            f"case '{job.case}': expected {job.channels} channel(s) as in dataset.json, found {len(data)} in "
            f"{shorten(map(str, job.images))}. Add the files, or remove the case."
        )
    label, values = np.zeros(data.shape[1:], dtype=np.uint16), frozenset[int]()
    if job.label is not None:
        label, values = read_label(job, data.shape[1:], grid)
    output = folder / "labelsTr" / f"{job.case}{ending}"
    if job.ending == ending:
        write_seg(job.reader, label, output, grid)
    else:
        SimpleITK.WriteImage(
            as_sitk(label.astype(np.uint8 if label.max() < 256 else np.uint16), grid), str(output), True
        )
    write_images(job, data, grid, folder, ending, images)
    return Held(values, f"{data.shape} {blake2b(np.ascontiguousarray(data).data, digest_size=16).hexdigest()}")


def write_seg(reader: BaseReaderWriter, label: np.ndarray, file: Path, grid: dict[str, Any]) -> None:
    """nnU-Net's own, whose readers do not all write values above 255: raises ValueError where this one does not."""
    reader.write_seg(label, str(file), grid)
    if label.max() > 255 and (reader.read_seg(str(file))[0][0] != label).any():
        raise ValueError(
            f"{file.name}: {type(reader).__name__} does not write label values above 255, found {label.max()}. Use "
            "another reader (`overwrite_image_reader_writer` in dataset.json), or fewer labels."
        )


def read_label(job: CaseJob, shape: tuple[int, ...], grid: Mapping[str, Any]) -> tuple[np.ndarray, frozenset[int]]:
    """The label map [*S] with its new values, and the old values in it; see `write_cases` for what is refused."""
    if not Path(job.label or "").is_file():
        raise FileNotFoundError(
            f"case '{job.case}': expected a label map {job.label}, found none. Write it, or "
            "declare the case unlabelled."
        )
    data, own_grid = _read(job.case, job.reader.read_seg, str(job.label), "label map")
    require_same_grid(job, data.shape[1:], own_grid, shape, grid)
    found = np.unique(data)
    foreign = [value for value in found.tolist() if value not in job.values]
    if foreign:
        raise SourceError(
            f"case '{job.case}': expected the values of `labels`, {shorten(map(str, sorted(job.values)))}, in "
            f"{job.label}, found {shorten(f'{value:g}' for value in foreign)}. Correct the map or `labels`."
        )
    return lookup(job.values)[data[0].astype(np.intp)], frozenset(map(int, found))


def require_same_grid(
    job: CaseJob, shape: tuple[int, ...], grid: Mapping[str, Any], expected: tuple[int, ...], image: Mapping[str, Any]
) -> None:
    """Raises ValueError where label map and image differ in size or geometry."""
    pairs = [("size", expected, shape), ("spacing", image["spacing"], grid["spacing"])]
    theirs, ours = image.get("sitk_stuff", {}), grid.get("sitk_stuff", {})
    pairs += [(name, theirs[name], ours[name]) for name in GEOMETRY if name in theirs]
    for name, wanted, found in pairs:
        if len(wanted) != len(found) or not np.allclose(wanted, found, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"case '{job.case}': {name} of {job.label} differs from its image: expected {readable(wanted)} as in "
                f"{job.images[0]}, found {readable(found)}. Resample the label map onto the image."
            )


def readable(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(f"{number:.6g}" for number in numbers) + ")"


def _read(case: str, read: Any, file: Any, what: str) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        return read(file)
    except Exception as error:  # each image library raises its own
        raise OSError(f"case '{case}': {what} {file} cannot be read: {brief(error)}. Restore the file.") from None


def write_images(
    job: CaseJob, data: np.ndarray, grid: Mapping[str, Any], folder: Path, ending: str, images: Images
) -> None:
    """Put the images of a case into `imagesTr`, where they are not only referenced."""
    names = [folder / "imagesTr" / f"{job.case}_{channel:04d}{ending}" for channel in range(len(job.images))]
    if job.ending != ending:
        if len(data) != len(names):
            raise ValueError(
                f"case '{job.case}': expected one channel in each of {shorten(map(str, job.images))}, found "
                f"{len(data)} in all. Colour images cannot be converted to {ending}; write one file per channel."
            )
        for name, channel in zip(names, data, strict=True):
            SimpleITK.WriteImage(as_sitk(channel, grid), str(name), True)
    elif images != "reference":
        for name, file in zip(names, job.images, strict=True):
            name.symlink_to(os.path.abspath(file)) if images == "link" else shutil.copyfile(file, name)
        write_spacing(job, grid, folder)


def write_spacing(job: CaseJob, grid: Mapping[str, Any], folder: Path) -> None:
    """nnU-Net keeps the spacing of 3D tiff images in a file beside them."""
    if isinstance(job.reader, Tiff3DIO):
        (folder / "imagesTr" / f"{job.case}.json").write_text(json.dumps({"spacing": list(grid["spacing"])}))


def as_sitk(array: np.ndarray, grid: Mapping[str, Any]) -> SimpleITK.Image:
    """An array [*S] of nnU-Net's readers as an image; single slices without geometry of their own become 2D.

    Raises ValueError for geometry that only the reader understands.
    """
    stuff = grid.get("sitk_stuff")
    if "nibabel_stuff" in grid:
        raise ValueError(
            "files that nnU-Net reads with nibabel cannot be converted without losing their geometry. Convert them to "
            "the file ending of the other datasets first, or merge with --file-ending of theirs."
        )
    flat = len(stuff["spacing"]) == 2 if stuff else len(array) == 1
    image = SimpleITK.GetImageFromArray(array[0] if flat else array)
    if stuff is None:
        image.SetSpacing([float(s) for s in grid["spacing"]][::-1][: image.GetDimension()])
    else:
        image.SetSpacing(stuff["spacing"])
        image.SetOrigin(stuff["origin"])
        image.SetDirection(stuff["direction"])
    return image


def common_ending(endings: Sequence[str], wanted: str | None = None) -> str:
    """The ending that all files get: the wanted one, or the most frequent; where they differ, one SimpleITK writes."""
    choice = wanted or max(dict.fromkeys(endings), key=endings.count)
    if {choice} != set(endings) and choice not in SimpleITKIO.supported_file_endings:
        if wanted:
            raise ValueError(
                f"file ending '{wanted}': files can be converted to {shorten(SimpleITKIO.supported_file_endings)} only."
            )
        return ".nii.gz"
    return choice
