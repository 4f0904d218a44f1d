"""Look for damage that image libraries hide: they fill up a cut NIfTI file with zeros, and read NaN in it as 0."""

from __future__ import annotations

import gzip
import logging
import math
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, cast

import nibabel
import numpy as np
import tifffile

from nnunetv2_conemos.errors import VolumeError

BLOCK = 3 << 20  # bytes read at once; the widths of all voxels divide it
HEADER = 540  # bytes, of the larger of the two NIfTI headers
GIPL_HEADER, GIPL_BITS = 256, {1: 1, 7: 8, 8: 8, 15: 16, 16: 16, 31: 32, 32: 32, 64: 32, 65: 64, 144: 32, 160: 64}


def require_whole(file: Path) -> None:
    """Raise VolumeError for a file that is shorter, or longer, than its header says, or whose content is damaged.

    Formats whose libraries refuse a cut file themselves (MetaImage) are left to these.
    """
    for ending, check in CHECKS.items():
        if file.name.lower().endswith(ending):
            if problem := check(file):
                raise VolumeError(f"{file} is damaged: {problem}.", "Restore the file.")
            return


def nifti(file: Path) -> str:
    """Compare the length of a NIfTI file, decompressed, with its header, and look for numbers that are not finite."""
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            return length_problem(cast("IO[bytes]", stream), file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"its compressed data are damaged ({error})"


def length_problem(stream: IO[bytes], file: Path) -> str:
    """Return what is wrong with the length of an unpacked NIfTI stream; empty where nothing is.

    Raises VolumeError for a whole file with a spacing of 0, of which nibabel makes 1 mm, or with strange voxels.
    """
    start = stream.read(HEADER)
    first = any(start[:4] == struct.pack(f"{order}i", 348) for order in "<>")
    try:
        header = (nibabel.Nifti1Header if first else nibabel.Nifti2Header).from_fileobj(BytesIO(start), check=False)
        size, kind = header.get_data_shape(), header.get_data_dtype()
        offset, spacing = int(header.get_data_offset() or 352), header["pixdim"][1 : 1 + min(3, len(size))]
    except Exception as error:  # nibabel raises its own for each field
        return f"it has no valid NIfTI header ({error})"
    if not (np.isfinite(spacing) & (spacing != 0)).all():
        what = f"{file}: expected a positive spacing, found {spacing.tolist()}."
        raise VolumeError(what, "Correct its header.")
    if offset > len(start):
        stream.read(offset - len(start))
    found, strange, rest = offset, 0, start[offset:]
    while block := rest + stream.read(BLOCK - len(rest)):  # whole voxels, as all widths divide a block
        found, rest = found + len(block), b""
        if kind.kind == "f":
            whole = block[: len(block) - len(block) % kind.itemsize]
            strange += int(np.count_nonzero(~np.isfinite(np.frombuffer(whole, kind))))
    expected = offset + math.prod(map(int, size)) * kind.itemsize
    if found != expected:
        return f"its header says {expected} bytes, found {found}"
    require_finite(strange, str(file))
    return ""


def require_finite(strange: int, files: str) -> None:
    """Raise VolumeError for any number of voxels that are not finite."""
    if strange:
        raise VolumeError(
            f"{files}: expected finite numbers, found {strange} voxel(s) that are NaN or infinite.",
            "Replace them; one of them is enough to spoil a training.",
        )


def gipl(file: Path) -> str:
    """Compare the length of a GIPL file with its header: four sizes and a type, big-endian."""
    with file.open("rb") as stream:
        start = stream.read(10)
    if len(start) < 10:
        return "it is shorter than its header"
    *size, kind = struct.unpack(">4HH", start)
    bits = GIPL_BITS.get(kind)
    if bits is None:
        return f"it has no valid GIPL header (type {kind})"
    expected = GIPL_HEADER + math.prod(max(length, 1) for length in size) * bits // 8
    return "" if file.stat().st_size == expected else f"its header says {expected} bytes"


def nrrd(file: Path) -> str:
    """Unpack an NRRD file with compressed data to its end, where its checksum is; others are refused when read."""
    with file.open("rb") as stream:
        end = re.search(rb"\r?\n\r?\n", start := stream.read(BLOCK))
        if end is None:
            return "" if b"\ndata file:" in start else "its header has no end"
        header = start[: end.start()]
        if not re.search(rb"^encoding: *gz", header, re.MULTILINE) or b"\ndata file:" in header:
            return ""
        stream.seek(end.end())
        try:
            with gzip.open(stream) as data:
                while data.read(BLOCK):
                    pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            return f"its compressed data are damaged ({error})"
    return ""


def tiff(file: Path) -> str:
    """Return what tifffile logs about pages that lie beyond the end of the file."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("tifffile")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        with tifffile.TiffFile(file) as image:
            ends = [o + n for page in image.pages for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
            _ = image.series
    except Exception as error:  # tifffile raises its own
        return str(error)
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    if max(ends, default=0) > file.stat().st_size:
        return "its pages lie beyond its end"
    return next((text.partition("> ")[2] for text in heard if "offset" in text or "reshape" in text), "")


def png(file: Path) -> str:
    """Look for the chunk that ends every PNG file."""
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 12))
        return "" if b"IEND" in stream.read() else "its last chunk is missing"


def bmp(file: Path) -> str:
    """Compare the length of a BMP file with the one in its header."""
    with file.open("rb") as stream:
        start = stream.read(6)
    if len(start) < 6:
        return "it is shorter than its header"
    (expected,) = struct.unpack("<I", start[2:])
    return "" if file.stat().st_size >= expected else f"its header says {expected} bytes"


CHECKS: dict[str, Callable[[Path], str]] = {
    ".nii.gz": nifti, ".nii": nifti, ".nrrd": nrrd, ".gipl": gipl,
    ".tif": tiff, ".tiff": tiff, ".png": png, ".bmp": bmp,
}  # fmt: skip
