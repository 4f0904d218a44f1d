"""Write a label map as a `.seg.nrrd` file, as 3D Slicer reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from nnunetv2_conemos.conversion.segment_files import read_layers, write_segments


def write(label_map: Path, images: Iterable[Path], labels: Mapping[str, tuple[int, ...]], target: Path) -> None:
    """Write the labels (name -> values of the map) as segments; raises VolumeError for a map that cannot be read."""
    layers = read_layers(label_map)
    masks = {label: layers.mask(",".join(map(str, values))) for label, values in labels.items()}
    write_segments(target, masks, layers.grid)
