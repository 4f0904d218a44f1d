"""Mutations of volumes: headers and bodies of NIfTI, NRRD and MetaImage, pictures, and the values of label maps."""

from __future__ import annotations

import gzip
import random
import re
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK

from attack.mutate import _flip

HEADER = 348  # bytes of a NIfTI-1 header
NIFTI = {  # field -> offset, format
    "sizeof_hdr": (0, "<i"),
    "dim[0]": (40, "<h"),
    "dim[1]": (42, "<h"),
    "dim[2]": (44, "<h"),
    "dim[3]": (46, "<h"),
    "dim[4]": (48, "<h"),
    "dim[5]": (50, "<h"),
    "datatype": (70, "<h"),
    "bitpix": (72, "<h"),
    "pixdim[0]": (76, "<f"),
    "pixdim[1]": (80, "<f"),
    "pixdim[3]": (88, "<f"),
    "vox_offset": (108, "<f"),
    "scl_slope": (112, "<f"),
    "scl_inter": (116, "<f"),
    "qform_code": (252, "<h"),
    "sform_code": (254, "<h"),
    "quatern_b": (256, "<f"),
    "qoffset_x": (268, "<f"),
    "srow_x[0]": (280, "<f"),
    "srow_y[3]": (308, "<f"),
    "magic": (344, "<i"),
}
SIZES = {2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1792: 16}  # bytes
SHORTS = (0, -1, 1, 2, 3, 4, 7, 8, 16, 64, 128, 511, 512, 768, 1024, 1536, 2304, 32767, -32768)
FLOATS = (0.0, -1.0, 1.0, 1.01, 1e-30, 1e30, float("nan"), float("inf"), 348.0, 351.5, 353.0, -352.0, 0.5)
NRRD = (
    "sizes: 0 0 0", "sizes: 7 6", "sizes: 7 6 3 2", "sizes: 70 6 3", "sizes: -7 6 3", "sizes: 99999 99999 99999",
    "type: float", "type: block", "type: double", "type: int64", "encoding: raw", "encoding: ascii", "encoding: bzip2",
    "endian: big", "dimension: 2", "dimension: 4", "space: left-posterior", "space: nonsense", "kinds: vector x y",
    "space directions: (1,0,0) (0,1,0) (0,0,0)", "space directions: none (0,1,0) (0,0,1)", "space origin: (nan,0,0)",
    "space directions: (-1,0,0) (0,1,0) (0,0,2)", "data file: ../elsewhere.raw", "line skip: -1", "byte skip: -1",
)  # fmt: skip
META = (
    "NDims = 2", "NDims = 4", "DimSize = 7 6", "DimSize = 70 6 3", "DimSize = -7 6 3", "DimSize = 99999 99999 99999",
    "ElementType = MET_DOUBLE", "ElementType = MET_OTHER", "ElementNumberOfChannels = 3", "ElementSpacing = 0 1 1",
    "ElementSpacing = nan 1 1", "TransformMatrix = -1 0 0 0 1 0 0 0 1", "TransformMatrix = 0 0 0 0 0 0 0 0 0",
    "Offset = 50 0 0", "ElementDataFile = ../elsewhere.raw", "CompressedData = False", "BinaryDataByteOrderMSB = True",
)  # fmt: skip
VALUES = (7, 255, -1, 300, 0.5, 1.0000001, float("nan"), float("inf"), 2**20)


def mutate_volume(rng: random.Random, file: Path, is_label: bool) -> tuple[str, str]:
    """Change a volume in one way; return what was done, and why it must be refused (empty where it need not be)."""
    how = rng.choice(("header", "header", "body", "body", "values", "bytes", "cut"))
    if how == "values" or (file.suffix in (".png", ".tif") and how == "header"):
        return _values(rng, file, is_label)
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[: rng.randrange(len(data) - 16)])  # the last 16 bytes of a PNG hold no pixel
        return "cut", "truncated"
    if how == "bytes":
        file.write_bytes(_flip(rng, data))
        return "bits flipped", "the checksum is wrong" if _checksum_differs(file, data) else ""
    if file.name.endswith((".nii.gz", ".nii")):
        return _nifti(rng, file, how)
    if file.suffix in (".nrrd", ".mha"):
        return _text_header(rng, file, data, how)
    file.write_bytes(data[: rng.randrange(len(data))])
    return "cut", "truncated"


def _checksum_differs(file: Path, before: bytes) -> bool:
    """Return whether a changed gzip file cannot be the original any more, by its own checksum."""
    if file.suffix != ".gz":
        return False
    with suppress(OSError, EOFError, zlib.error, struct.error):
        gzip.decompress(file.read_bytes())
        return False
    return True


def _nifti(rng: random.Random, file: Path, how: str) -> tuple[str, str]:
    packed = file.suffix == ".gz"
    data = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    before = bytes(data)
    if how == "header":
        field = rng.choice(list(NIFTI))
        offset, kind = NIFTI[field]
        value = rng.choice(SHORTS if kind == "<h" else FLOATS if kind == "<f" else (0, 540, 348 << 16, -1))
        struct.pack_into(kind, data, offset, value)
        done = f"{field} = {value}"
    else:
        cut = rng.randrange(HEADER, len(data))
        data = data[:cut] if rng.random() < 0.7 else data[:cut] + data[cut + 1 :]
        done = f"body of {len(data) - HEADER - 4} bytes"
    file.write_bytes(gzip.compress(bytes(data), mtime=0) if packed else bytes(data))
    return done, "truncated" if _too_short(bytes(data)) and bytes(data) != before else ""


def _too_short(data: bytes) -> bool:
    """Return whether a NIfTI-1 file holds fewer bytes than its header says."""
    dims = struct.unpack_from("<8h", data, 40)
    size, offset = SIZES.get(struct.unpack_from("<h", data, 70)[0], 0), struct.unpack_from("<f", data, 108)[0]
    if not 1 <= dims[0] <= 7 or any(side < 1 for side in dims[1 : dims[0] + 1]) or not np.isfinite(offset):
        return False  # refused or mended for other reasons
    return offset + np.prod([float(side) for side in dims[1 : dims[0] + 1]]) * size > len(data)


def _text_header(rng: random.Random, file: Path, data: bytes, how: str) -> tuple[str, str]:
    """Change a line of the header of a NRRD or MetaImage file, or cut its body."""
    end = data.index(b"\n\n") + 2 if file.suffix == ".nrrd" else data.index(b"\n", data.index(b"ElementDataFile")) + 1
    header, body = data[:end], data[end:]
    if how == "body":
        cut = rng.randrange(len(body))
        file.write_bytes(header + body[:cut])
        return f"body of {cut} of {len(body)} bytes", "truncated"
    line = rng.choice(NRRD if file.suffix == ".nrrd" else META)
    key = re.split(r"[:=]", line)[0].strip().encode()
    lines = [line.encode() if old.startswith(key) else old for old in header.split(b"\n")]
    if line.encode() not in lines:
        lines.insert(1, line.encode())
    file.write_bytes(b"\n".join(lines) + body)
    return line, ""


def _values(rng: random.Random, file: Path, is_label: bool) -> tuple[str, str]:
    """Write another value into some voxels, with the type that it needs."""
    value = rng.choice(VALUES)
    if file.name.endswith(".nii"):
        import nibabel

        image = nibabel.load(file)
        array = np.asarray(image.dataobj).astype(np.float64)
        array.flat[: rng.choice((1, 5, 50))] = value
        nibabel.save(nibabel.Nifti1Image(array, image.affine), file)
    elif file.suffix in (".png", ".tif"):
        value = rng.choice((7, 255))
        image = SimpleITK.ReadImage(str(file))
        array = SimpleITK.GetArrayFromImage(image)
        array.flat[: rng.choice((1, 5, 50))] = value
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(file))
    else:
        image = SimpleITK.ReadImage(str(file))
        array = SimpleITK.GetArrayFromImage(image).astype(np.float64)
        array.flat[: rng.choice((1, 5, 50))] = value
        changed = SimpleITK.GetImageFromArray(array)
        changed.CopyInformation(image)
        SimpleITK.WriteImage(changed, str(file))
    wrong = is_label or not np.isfinite(value)
    return f"voxels = {value}", f"{'label ' if is_label else ''}value {value}" if wrong else ""
