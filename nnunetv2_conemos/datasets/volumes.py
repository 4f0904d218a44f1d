"""Read and write volumes: whatever is wrong with a file as it is on disk is an error that names it.

nnU-Net's readers fill up the missing end of a truncated NIfTI file with zeros, take the components of a voxel for
slices, and pass on NaN; a full disk can leave half a map without an error. So each volume is checked here when it is
read, and each map when it was written. Axis letters: **C** channel, ***S** space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunetv2_conemos.annotations.labels import MAX_VALUE
from nnunetv2_conemos.datasets.geometry import NIBABEL, Grid, difference, grid_of_array, grid_of_header
from nnunetv2_conemos.datasets.whole_file import require_finite, require_whole
from nnunetv2_conemos.errors import VolumeError, brief, shorten

ONE_EACH = "Save one volume per channel, and a plain label map."
RESAMPLE = "Resample one of them onto the other; nnU-Net works voxel by voxel."


class Volume(NamedTuple):
    """An image [C,*S] of float32, or a label map [*S] of uint16, as nnU-Net's reader gives it, and its grid."""

    data: np.ndarray
    properties: dict[str, Any]
    grid: Grid


def read_image(files: Sequence[Path], reader: BaseReaderWriter, channels: int) -> Volume:
    """Read an image from one file per channel, or from a colour file; raises VolumeError for what training would spoil.

    That is: a file that is missing, cut off or unreadable, another number of channels, channels that do not lie on one
    grid, several volumes in a file, and voxels that are not finite.
    """
    for file in files:
        require_readable(file, reader)
    require_one_grid(files, reader)
    volume = _read(files[0], reader, lambda: reader.read_images([str(file) for file in files]))
    if len(volume.data) != channels:
        raise VolumeError(
            f"expected {channels} channel(s) as in dataset.json, found {len(volume.data)} in "
            f"{shorten(map(str, files))}.",
            "Add or convert the files, or correct `channel_names`.",
        )
    require_finite(volume.data.size - int(np.isfinite(volume.data).sum()), shorten(map(str, files)))
    return volume


def read_label_map(file: Path, reader: BaseReaderWriter) -> Volume:
    """Read a label map [*S] of uint16; raises VolumeError for a file that is not one, with the value that shows it."""
    require_readable(file, reader)
    data, properties, grid = _read(file, reader, lambda: reader.read_seg(str(file)))
    if len(data) != 1:
        raise VolumeError(f"{file}: expected one channel of label values, found {len(data)}.", ONE_EACH)
    with np.errstate(invalid="ignore"):
        voxels = data[0].astype(np.uint16)
    wrong = voxels != data[0]
    if wrong.any():
        values = shorten(np.unique(data[0][wrong]).astype(str).tolist(), 4)
        raise VolumeError(
            f"{file}: expected label values, whole numbers from 0 to {MAX_VALUE}, found values that are not labels: "
            f"{values}.",
            "Correct the map.",
        )
    return Volume(voxels, properties, grid)


def write_label_map(label: np.ndarray, file: Path, reader: BaseReaderWriter, properties: dict[str, Any]) -> None:
    """Write a label map [*S] with nnU-Net's reader and read it again; raises VolumeError where it is not the same."""
    write_label_map_once(label, file, reader, properties)
    require_written(file, reader, label)


def write_label_map_once(label: np.ndarray, file: Path, reader: BaseReaderWriter, properties: dict[str, Any]) -> None:
    """Write a label map [*S] with nnU-Net's reader; raises VolumeError where the file is not whole.

    Nothing is printed meanwhile or kept from being printed, so this can run in a thread.
    """
    _write(file, lambda: reader.write_seg(label, str(file), properties))
    require_whole(file)


def write_image(image: SimpleITK.Image, file: Path) -> None:
    """Write an image with SimpleITK and read it again; raises VolumeError where it is not the same."""
    _write(file, lambda: SimpleITK.WriteImage(image, str(file), True))
    require_whole(file)
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
    if not np.array_equal(found, SimpleITK.GetArrayFromImage(image)):
        raise VolumeError(f"{file}: what was written differs from what was to be written.", "Is the disk full?")


def require_written(file: Path, reader: BaseReaderWriter, label: np.ndarray) -> None:
    """Raise VolumeError where a label map that was written does not hold these values."""
    found = _read(file, reader, lambda: reader.read_seg(str(file))).data[0]
    if found.shape == label.shape and (found == label).all():
        return
    if label.max() > 255:
        raise VolumeError(
            f"{file.name}: {type(reader).__name__} cannot write label values above 255, found {label.max()}.",
            "Use another reader (`overwrite_image_reader_writer` in dataset.json), or fewer labels.",
        )
    raise VolumeError(f"{file}: the map that was written differs from what was to be written.", "Is the disk full?")


def require_same_grid(expected: Grid, found: Grid, files: tuple[Path, Path], remedy: str) -> None:
    """Raise VolumeError where two files do not lie on one grid."""
    if differs := difference(expected, found):
        raise VolumeError(f"{differs.name} differs between {files[0]} and {files[1]}: {differs}.", remedy)


def require_one_grid(files: Sequence[Path], reader: BaseReaderWriter) -> None:
    """Raise VolumeError where the channels of an image do not lie on one grid, or where its spacing is not positive."""
    with reading(files[0]):
        grids = [grid_of_header(file, reader) for file in files]
    for file, grid in zip(files, grids, strict=True):
        if grid and grids[0]:
            require_usable(grid, file)
            require_same_grid(grids[0], grid, (files[0], file), RESAMPLE)


def require_usable(grid: Grid, file: Path) -> None:
    """Raise VolumeError for a header whose spacing or directions place all voxels nowhere, or in one plane."""
    flat = grid.affine is not None and not abs(np.linalg.det(grid.affine)) > 0  # also NaN
    if flat or not (np.isfinite(grid.spacing).all() and min(grid.spacing, default=1) > 0):
        raise VolumeError(
            f"{file}: expected a positive spacing and independent axes, found the spacing {grid.spacing} and the "
            f"directions {grid.direction}.",
            "Correct its header.",
        )


def require_readable(file: Path, reader: BaseReaderWriter) -> None:
    """Raise VolumeError for a file that is missing or cut off, or that holds more than one plain volume."""
    if not file.is_file():
        raise VolumeError(f"there is no {file}.", "Restore the file.")
    with reading(file):
        require_whole(file)
        if isinstance(reader, NIBABEL):
            header: Any = nibabel.load(file)
            size, components = header.shape, len(header.get_data_dtype().names or "1")
        elif isinstance(reader, SimpleITKIO):
            header = SimpleITK.ImageFileReader()
            header.SetFileName(str(file))
            header.ReadImageInformation()
            size, components = header.GetSize(), header.GetNumberOfComponents()
        else:
            return
    if len(size) > 3:
        raise VolumeError(
            f"{file}: expected one volume, found {len(size)} dimensions: {' x '.join(map(str, size))}, that is, "
            f"{int(np.prod(size[3:]))} volume(s) in one file.",
            ONE_EACH,
        )
    if components > 1:
        raise VolumeError(f"{file}: expected one number per voxel, found {components} components.", ONE_EACH)


def _read(file: Path, reader: BaseReaderWriter, read: Any) -> Volume:
    with reading(file):
        data, properties = read()
    if not data.size:
        raise VolumeError(
            f"{file}: expected voxels, found none: {' x '.join(map(str, data.shape))}.", "Restore the file."
        )
    grid = grid_of_array(data.shape[1:], properties)
    require_usable(grid, file)
    if isinstance(reader, Tiff3DIO) and not (file.with_suffix(".json").is_file() or spacing_file(file).is_file()):
        grid = grid._replace(spacing=())  # the reader then says 1 mm, which nobody measured
    return Volume(data, properties, grid)


def spacing_file(image: Path) -> Path:
    """Return where nnU-Net looks for the spacing of a 3D tiff image: CASE.json beside CASE_0000.tif."""
    return image.with_name(f"{image.stem[:-5]}.json")


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn what image libraries raise within the block into a VolumeError, and keep them from printing."""
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    except VolumeError:
        raise
    except Exception as error:  # each image library raises its own
        if "orthonormal" in str(error):
            raise VolumeError(
                f"{file}: its axes are not at right angles, which SimpleITK does not read.",
                'Read the dataset with nibabel: "overwrite_image_reader_writer": "NibabelIO" in dataset.json.',
            ) from None
        raise VolumeError(f"{file} cannot be read: {brief(error)}.", "Restore the file.") from None


@contextmanager
def naming(case: str) -> Iterator[None]:
    """Name the case in every VolumeError that the block raises."""
    try:
        yield
    except VolumeError as error:
        raise VolumeError(f"case '{case}': {error.what}", error.remedy) from None


def _write(file: Path, write: Any) -> None:
    try:
        write()
    except Exception as error:  # each image library raises its own
        raise VolumeError(f"{file} cannot be written: {brief(error)}.", "Is there space left?") from None
