"""Segmentation files: `.seg.nrrd` of 3D Slicer, whose layers hold segments by value, and plain label maps.

Axis letters: **L** layers, ***S** space. The key of a segment is `value` in a plain map, `layer:value` in a .seg.nrrd.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_conemos.annotations.labels import MAX_VALUE
from nnunetv2_conemos.datasets.geometry import Grid, as_sitk, ras_affine
from nnunetv2_conemos.datasets.volumes import read_label_map, reading, require_usable
from nnunetv2_conemos.datasets.whole_file import require_whole
from nnunetv2_conemos.errors import VolumeError, shorten

SEG_NRRD = ".seg.nrrd"


class Segment(NamedTuple):
    """A segment of a .seg.nrrd file."""

    name: str
    key: str


class Layers(NamedTuple):
    """The voxels of a segmentation file as label maps [L,*S] on one grid."""

    data: np.ndarray
    grid: Grid
    plain: bool

    def values(self) -> dict[str, int]:
        """Return the keys of all values other than 0, and how many voxels have them."""
        found = {}
        for layer, voxels in enumerate(self.data):
            counts = count_values(voxels)
            found |= {self.key(layer, value): count for value, count in counts.items() if value}
        return found

    def key(self, layer: int, value: int) -> str:
        """Return the key of a value in a layer."""
        return str(value) if self.plain else f"{layer}:{value}"

    def mask(self, key: str) -> np.ndarray:
        """Return the voxels [*S] of a segment, or of the values `1,2` of a plain map."""
        layer, _, value = key.rpartition(":")
        values = [int(part) for part in value.split(",")]
        voxels = self.data[int(layer or 0)]
        return voxels == values[0] if len(values) == 1 else np.isin(voxels, values)


def count_values(label_map: np.ndarray) -> dict[int, int]:
    """Return value -> voxels of a label map [*S] of uint16, slice by slice: NumPy counts with eight bytes a voxel."""
    counts = np.zeros(MAX_VALUE + 1, dtype=np.int64)
    for plane in label_map:
        counts += np.bincount(plane.ravel(), minlength=MAX_VALUE + 1)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def read_layers(file: Path) -> Layers:
    """Read a segmentation file; raises VolumeError for values that are not whole, and for damaged files."""
    if not file.name.lower().endswith(SEG_NRRD):
        label_map = read_label_map(file, SimpleITKIO())
        return Layers(label_map.data[None], label_map.grid, plain=True)
    with reading(file):
        require_whole(file)
        image = SimpleITK.ReadImage(str(file))
        data = SimpleITK.GetArrayViewFromImage(image)
        layers = np.moveaxis(data, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else data[None]
    if not np.issubdtype(layers.dtype, np.integer) or layers.min() < 0 or layers.max() > MAX_VALUE:
        raise VolumeError(f"{file}: expected label values, found numbers that are none.", "Save it as a segmentation.")
    spacing = image.GetSpacing()
    grid = Grid(image.GetSize(), spacing, ras_affine(spacing, image.GetOrigin(), image.GetDirection()))
    require_usable(grid, file)
    return Layers(layers.astype(np.uint16), grid, plain=False)


def segments_of(file: Path) -> list[Segment]:
    """Return the segments that the header of a .seg.nrrd names, in order.

    Raises VolumeError for a file that cannot be read or names none, and for two segments of one value in a layer.
    """
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(file))
    with reading(file):
        header.ReadImageInformation()
        entries = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys()}
    numbers = sorted(int(found[1]) for key in entries if (found := re.fullmatch(r"Segment(\d+)_(?:ID|Name)", key)))
    numbers = list(dict.fromkeys(numbers))
    if not numbers:
        raise VolumeError(
            f"{file}: expected segments in its header (Segment0_Name, ...), found none.", "Save it in 3D Slicer again."
        )
    own_layers = header.GetNumberOfComponents() == len(numbers) > 1  # of old versions, which write neither key
    segments = []
    for place, number in enumerate(numbers):
        layer = entries.get(f"Segment{number}_Layer", str(place) if own_layers else "0").strip()
        value = entries.get(f"Segment{number}_LabelValue", "1").strip()
        name = entries.get(f"Segment{number}_Name", entries.get(f"Segment{number}_ID", "")).strip()
        if not (layer.isdecimal() and value.isdecimal() and name) or int(layer) >= header.GetNumberOfComponents():
            raise VolumeError(
                f"{file}: expected a name, layer and value of segment {number}, found {name!r}, {layer!r}, {value!r}.",
                "Save it in 3D Slicer again.",
            )
        segments.append(Segment(name, f"{int(layer)}:{int(value)}"))
    keys = [segment.key for segment in segments]
    if twice := [segment.name for segment in segments if keys.count(segment.key) > 1]:
        raise VolumeError(
            f"{file}: expected a layer and value of its own for each segment, found the same for {shorten(twice)}.",
            "Save it in 3D Slicer again.",
        )
    return segments


def write_segments(file: Path, masks: Mapping[str, np.ndarray], grid: Grid) -> None:
    """Write masks [*S] by name as a .seg.nrrd, in as few layers as their overlaps allow; raises FileError."""
    layers, places = layered(list(masks.values()), next(iter(masks.values())).shape)
    images = [as_sitk(layer, grid) for layer in layers]
    image = SimpleITK.Compose(images) if len(images) > 1 else images[0]
    upper = [size - 1 for size in image.GetSize()]
    extent = " ".join(f"0 {last}" for last in upper)
    for number, (name, (layer, value)) in enumerate(zip(masks, places, strict=True)):
        entries = {"ID": f"Segment_{number + 1}", "Name": name, "NameAutoGenerated": "0", "Layer": layer}
        entries |= {"LabelValue": value, "Extent": extent, "Tags": "|"}
        for key, content in entries.items():
            image.SetMetaData(f"Segment{number}_{key}", str(content))
    image.SetMetaData("Segmentation_MasterRepresentation", "Binary labelmap")
    image.SetMetaData("Segmentation_ContainedRepresentationNames", "Binary labelmap|")
    image.SetMetaData("Segmentation_ReferenceImageExtentOffset", "0 0 0")
    with reading(file):
        SimpleITK.WriteImage(image, str(file), True)
        header, end, data = file.read_bytes().partition(b"\n\n")
        file.write_bytes(header.replace(b"kinds: vector ", b"kinds: list ") + end + data)  # as 3D Slicer writes layers


def layered(masks: Sequence[np.ndarray], shape: tuple[int, ...]) -> tuple[list[np.ndarray], list[tuple[int, int]]]:
    """Return label maps [*S] that hold masks, and layer and value of each mask."""
    layers: list[np.ndarray] = []
    places, used = [], []
    for mask in masks:
        layer = next((number for number, voxels in enumerate(layers) if not voxels[mask].any()), len(layers))
        if layer == len(layers):
            layers.append(np.zeros(shape, dtype=np.uint8 if len(masks) < 256 else np.uint16))
            used.append(0)
        used[layer] += 1
        layers[layer][mask] = used[layer]
        places.append((layer, used[layer]))
    return layers, places
