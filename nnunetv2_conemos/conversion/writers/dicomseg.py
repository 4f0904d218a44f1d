"""Write a label map as a DICOM segmentation (BINARY) on its series, with highdicom."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_conemos.conversion.dicom_files import read_header
from nnunetv2_conemos.conversion.series import Series
from nnunetv2_conemos.conversion.writers.dicom_label_map import PRODUCT, VERSION, Labels, write_on_series


def write(label_map: Path, series: Path | Iterable[Path], labels: Labels, target: Path) -> None:
    """Write the labels (name -> values of the map) as segments, absent ones without frames.

    `series` is the folder of the DICOM series or its files. Raises VolumeError where map and series do not lie on one
    grid, InputError for names that DICOM does not hold.
    """
    write_on_series(segmentation, label_map, series, labels, target)


def segmentation(data: np.ndarray, series: Series, labels: Labels) -> Any:
    """Build the segmentation of a label map [*S]."""
    from highdicom.seg import Segmentation
    from pydicom.uid import generate_uid

    return Segmentation(
        source_images=[read_header(file) for file in series.files],
        pixel_array=in_order_of_frames(segments(data, labels), series),
        segmentation_type="BINARY",
        segment_descriptions=descriptions(labels),
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions=VERSION,
        device_serial_number=VERSION,
        series_description="Segmentation",
    )


def segments(data: np.ndarray, labels: Labels) -> np.ndarray:
    """Return a map [*S] of segment numbers or, where labels share values, a mask per label [*S,label]."""
    values = list(chain.from_iterable(labels.values()))
    if len(values) > len(set(values)):
        return np.stack([np.isin(data, its_values) for its_values in labels.values()], axis=-1)
    numbers = np.zeros(int(max(*values, data.max(), 0)) + 1, dtype=np.uint16)
    for number, its_values in enumerate(labels.values(), 1):
        numbers[list(its_values)] = number
    return numbers[data]


def in_order_of_frames(array: np.ndarray, series: Series) -> np.ndarray:
    """Return an array [slices,...] in the order of the frames of the one file that holds all slices, if one does."""
    frames = [header.frame for header in series.slices]
    return array if None in frames else array[np.argsort(np.array(frames, dtype=int))]


def descriptions(labels: Iterable[str]) -> list[Any]:
    """Return the descriptions of segments; what a label means anatomically is in its name alone."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(PRODUCT, codes.DCM.ArtificialIntelligence, VERSION)
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(labels, 1)
    ]
