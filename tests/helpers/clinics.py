"""Small folders of files as clinics keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK
from raw_worlds import SHAPE, write_nifti

SPACING = (1.0, 1.0, 2.0)


def box(*rows: int, value: int = 1) -> np.ndarray:
    """A mask [*S] of some rows of voxels."""
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[:, list(rows)] = value
    return mask


def write_image(file: Path, number: int = 0) -> None:
    """An image whose voxels tell it from others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(file, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) + 7 * number, SPACING)


def write_patients(
    folder: Path,
    patients: Mapping[str, Mapping[str, np.ndarray]],
    image: str = "{case}/ct.nii.gz",
    mask: str = "{case}/segmentations/{label}.nii.gz",
) -> Path:
    """Write an image for each case, and a mask for each of its structures, in the places that patterns name."""
    for number, (case, structures) in enumerate(patients.items()):
        write_image(folder / image.format(case=case), number)
        for label, voxels in structures.items():
            file = folder / mask.format(case=case, label=label)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_nifti(file, voxels, SPACING)
    return folder


def write_seg_nrrd(
    file: Path,
    segments: Sequence[tuple[str, int, int]],
    layers: Sequence[np.ndarray],
    origin: Sequence[float] = (0, 0, 0),
    keys: bool = True,
) -> None:
    """A .seg.nrrd as 3D Slicer writes it: (name, layer, value) of each segment; without `keys`, as old versions did."""
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [SimpleITK.GetImageFromArray(layer.astype(np.uint8)) for layer in layers]
    image = SimpleITK.Compose(images) if len(images) > 1 else images[0]
    image.SetSpacing(SPACING)
    image.SetOrigin(origin)
    for number, (name, layer, value) in enumerate(segments):
        image.SetMetaData(f"Segment{number}_ID", f"Segment_{number}")
        image.SetMetaData(f"Segment{number}_Name", name)
        if keys:
            image.SetMetaData(f"Segment{number}_Layer", str(layer))
            image.SetMetaData(f"Segment{number}_LabelValue", str(value))
    SimpleITK.WriteImage(image, str(file), True)
    header, end, data = file.read_bytes().partition(b"\n\n")
    file.write_bytes(header.replace(b"kinds: vector ", b"kinds: list ") + end + data)
