"""Write the cases of a raw dataset from those of others: images referenced, linked or copied, label maps rewritten.

Every image is read once, so that a damaged file is found now and not in the middle of preprocessing.
Axis letters: ***S** space.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import SimpleITK
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_file_ending,
    recursive_find_reader_writer_by_name,
)
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_conemos.parallel import in_processes
from nnunetv2_conemos.relabel import lookup
from nnunetv2_conemos.sources import SourceError, shorten

Images = Literal["reference", "link", "copy"]
GEOMETRY = ("spacing", "origin", "direction")


class CaseJob(NamedTuple):
    """A case to be written: its id, its images in channel order, its label map (None: unlabelled) and the new values.

    `values` maps every value that the label map may hold; any other is an error. `ending` and `reader` are those of
    the files read.
    """

    case: str
    images: tuple[Path, ...]
    label: Path | None
    values: Mapping[int, int]
    ending: str
    reader: BaseReaderWriter


def reader_of(dataset_json: Mapping[str, Any]) -> BaseReaderWriter:
    """nnU-Net's reader of a raw dataset; raises ValueError for a file ending that it cannot read."""
    try:
        named = dataset_json.get("overwrite_image_reader_writer", "None")
        if named != "None":
            return recursive_find_reader_writer_by_name(named)()
        return determine_reader_writer_from_file_ending(dataset_json["file_ending"], verbose=False)()
    except RuntimeError as error:
        raise ValueError(f"{error} Correct `file_ending` or `overwrite_image_reader_writer`.") from None


def write_cases(
    jobs: Sequence[CaseJob], folder: Path, ending: str, images: Images, processes: int, title: str
) -> dict[str, frozenset[int]]:
    """Write `labelsTr` and, unless images are only referenced, `imagesTr`; returns the old values found in each case.

    Images with another ending than `ending` are converted whatever `images` says. Raises SourceError for values that
    are not mapped, ValueError where image and label map do not lie on one grid, OSError for unreadable files.
    """
    (folder / "labelsTr").mkdir()
    if images != "reference" or any(job.ending != ending for job in jobs):
        (folder / "imagesTr").mkdir()
    found = in_processes(write_case, [(job, folder, ending, images) for job in jobs], processes, title)
    return {job.case: values for job, values in zip(jobs, found, strict=True)}


def dataset_entries(jobs: Sequence[CaseJob], ending: str) -> dict[str, dict[str, Any]]:
    """nnU-Net's `dataset` key of dataset.json, which lets images lie elsewhere."""
    return {
        job.case: {
            "images": [
                str(file.resolve()) if job.ending == ending else f"imagesTr/{job.case}_{channel:04d}{ending}"
                for channel, file in enumerate(job.images)
            ],
            "label": f"labelsTr/{job.case}{ending}",
        }
        for job in jobs
    }


def write_case(job: CaseJob, folder: Path, ending: str, images: Images) -> frozenset[int]:
    """Write one case; returns the values that its label map held."""
    data, grid = _read(job.case, job.reader.read_images, [str(file) for file in job.images], "image")
    label, values = np.zeros(data.shape[1:], dtype=np.uint16), frozenset[int]()
    if job.label is not None:
        label, values = read_label(job, data.shape[1:], grid)
    output = folder / "labelsTr" / f"{job.case}{ending}"
    if job.ending == ending:
        job.reader.write_seg(label, str(output), grid)
    else:
        SimpleITK.WriteImage(
            as_sitk(label.astype(np.uint8 if label.max() < 256 else np.uint16), grid), str(output), True
        )
    write_images(job, data, grid, folder, ending, images)
    return values


def read_label(job: CaseJob, shape: tuple[int, ...], grid: Mapping[str, Any]) -> tuple[np.ndarray, frozenset[int]]:
    """The label map [*S] with its new values, and the old values in it; see `write_cases` for what is refused."""
    if not Path(job.label or "").is_file():
        raise FileNotFoundError(
            f"case '{job.case}': expected a label map {job.label}, found none. Write it, or "
            "declare the case unlabelled."
        )
    data, own_grid = _read(job.case, job.reader.read_seg, str(job.label), "label map")
    refuse_other_grid(job, data.shape[1:], own_grid, shape, grid)
    found = np.unique(data)
    foreign = [value for value in found.tolist() if value not in job.values]
    if foreign:
        raise SourceError(
            f"case '{job.case}': expected the values of `labels`, {shorten(map(str, sorted(job.values)))}, in "
            f"{job.label}, found {shorten(f'{value:g}' for value in foreign)}. Correct the map or `labels`."
        )
    return lookup(job.values)[data[0].astype(np.intp)], frozenset(map(int, found))


def refuse_other_grid(
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
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise OSError(f"case '{case}': {what} {file} cannot be read: {reason}. Restore the file.") from None


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
            name.symlink_to(file.resolve()) if images == "link" else shutil.copyfile(file, name)


def as_sitk(array: np.ndarray, grid: Mapping[str, Any]) -> SimpleITK.Image:
    """An array [*S] of nnU-Net's readers as an image; single slices without geometry of their own become 2D."""
    stuff = grid.get("sitk_stuff")
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
