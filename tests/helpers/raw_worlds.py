"""Tiny raw datasets of nnU-Net, written directly."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK

SHAPE = (3, 6, 7)


def write_nifti(file: Path, array: np.ndarray, spacing: Sequence[float] = (1.0, 1.0, 2.0)) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    SimpleITK.WriteImage(image, str(file), True)


def read_nifti(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))


def stripes(*values: int) -> np.ndarray:
    """A label map with one row of voxels for each value."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    for row, value in enumerate(values):
        array[:, row] = value
    return array


def class_order(labels: Mapping[str, object]) -> list[int]:
    """`regions_class_order`: each region is written as its value that lies in the fewest others."""
    values = {name: v if isinstance(v, list) else [v] for name, v in labels.items() if name != "ignore" and v != 0}
    return [min(v, key=lambda value: sum(value in other for other in values.values())) for v in values.values()]


def write_raw(
    folder: Path,
    labels: Mapping[str, object],
    maps: Mapping[str, np.ndarray | None],
    channels: Sequence[str] = ("CT",),
    ending: str = ".nii.gz",
    **more: object,
) -> Path:
    """A raw dataset; the image of channel c of case i is constant 10 i + c. None: no label map."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for number, (case, array) in enumerate(maps.items()):
        for channel in range(len(channels)):
            image = np.full(SHAPE, 10 * number + channel, dtype=np.int16)
            write_nifti(folder / "imagesTr" / f"{case}_{channel:04d}{ending}", image)
        if array is not None:
            write_nifti(folder / "labelsTr" / f"{case}{ending}", array)
    regions = any(isinstance(value, list) for value in labels.values())
    order = {"regions_class_order": class_order(labels)} if regions else {}
    content = {
        "channel_names": {str(place): name for place, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": len(maps),
        "file_ending": ending,
        **order,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
