"""Write a label map as a mask file for each label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from nnunetv2_conemos.annotations.names import is_text
from nnunetv2_conemos.conversion.segment_files import read_layers
from nnunetv2_conemos.datasets.geometry import as_sitk
from nnunetv2_conemos.datasets.volumes import write_image
from nnunetv2_conemos.errors import InputError, shorten


def write(label_map: Path, images: Iterable[Path], labels: Mapping[str, tuple[int, ...]], target: Path) -> None:
    """Write the labels (name -> values of the map) as masks `LABEL.nii.gz` into a folder; empty: a label is absent.

    Raises InputError for labels that cannot be names of files, VolumeError for a map that cannot be read.
    """
    wrong = [label for label in labels if "/" in label or "\\" in label or label.startswith(".") or not is_text(label)]
    if wrong:
        raise InputError(
            f"expected labels that can be names of files, found {shorten(map(repr, wrong))}. Choose another form, or "
            "leave them out with --labels."
        )
    layers = read_layers(label_map)
    target.mkdir(parents=True)
    for label, values in labels.items():
        mask = layers.mask(",".join(map(str, values)))
        write_image(as_sitk(mask.astype(np.uint8), layers.grid), target / f"{label}.nii.gz")
