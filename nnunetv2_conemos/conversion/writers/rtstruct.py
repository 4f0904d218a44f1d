"""Write a label map as a DICOM RT structure set on its series.

Contours run half-way between the centres of voxels inside and outside, so that reading them gives the same voxels.
Holes are contours of their own; the contours of such structures are of the type CLOSEDPLANAR_XOR.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from colorsys import hsv_to_rgb
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_conemos.conversion.contours import signed_area, trace
from nnunetv2_conemos.conversion.dicom_files import Header, read_header
from nnunetv2_conemos.conversion.series import Series
from nnunetv2_conemos.conversion.writers.dicom_label_map import PRODUCT, VERSION, Labels, write_on_series
from nnunetv2_conemos.datasets.geometry import Grid

COPIED = (
    "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "PositionReferenceIndicator",
)  # fmt: skip
COPIED_NAMES = ("PatientName", "ReferringPhysicianName")
DIGITS = 4  # of a position in mm


def write(label_map: Path, series: Path | Iterable[Path], labels: Labels, target: Path) -> None:
    """Write the labels (name -> values of the map) as structures, absent ones without contours.

    `series` is the folder of the DICOM series or its files. Raises VolumeError where map and series do not lie on one
    grid, InputError for names that DICOM does not hold.
    """
    write_on_series(structure_set, label_map, series, labels, target)


def structure_set(data: np.ndarray, series: Series, labels: Labels) -> Any:
    """Build the structure set of a label map [*S]."""
    dataset = new_dataset(series)
    reference = dataset.FrameOfReferenceUID
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    of_each = zip(labels.items(), colours(len(labels)), strict=True)
    for number, ((name, values), colour) in enumerate(of_each, 1):
        dataset.StructureSetROISequence.append(
            item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=reference,
                ROIName=name,
                ROIGenerationAlgorithm="AUTOMATIC",
            )
        )
        contours = list(contours_of(np.isin(data, values), series))
        roi = item(ReferencedROINumber=number, ROIDisplayColor=list(colour))
        if contours:
            roi.ContourSequence = contours
        dataset.ROIContourSequence.append(roi)
        dataset.RTROIObservationsSequence.append(
            item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter="")
        )
    return dataset


def contours_of(mask: np.ndarray, series: Series) -> Iterator[Any]:
    """Yield the contours of a mask [*S], slice by slice."""
    by_slice = {int(place): trace(mask[place]) for place in np.flatnonzero(mask.any(axis=(1, 2)))}
    has_holes = any(signed_area(contour) < 0 for contours in by_slice.values() for contour in contours)
    kind = "CLOSEDPLANAR_XOR" if has_holes else "CLOSED_PLANAR"
    for place, contours in by_slice.items():
        for contour in contours:
            points = positions(contour, place, series.grid)
            yield item(
                ContourImageSequence=[reference_to(series.slices[place])],
                ContourGeometricType=kind,
                NumberOfContourPoints=len(points),
                ContourData=[f"{value:.{DIGITS}f}" for value in points.ravel()],
            )


def positions(contour: np.ndarray, place: int, grid: Grid) -> np.ndarray:
    """Return the points [n,3] in mm, in LPS+, of a contour [n,2] in the pixels of a slice."""
    assert grid.affine is not None
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    return np.column_stack([contour, np.full(len(contour), place)]) @ lps[:3, :3].T + lps[:3, 3]


def new_dataset(series: Series) -> Any:
    """Return a structure set without structures: patient, study, series and what it refers to."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    source, now = read_header(series.files[0]), datetime.now()
    today, time = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset = item(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=generate_uid(),
        Modality="RTSTRUCT",
        SeriesInstanceUID=generate_uid(),
        SeriesNumber=None,
        SeriesDescription="Structures",
        OperatorsName="",
        Manufacturer=PRODUCT,
        ManufacturerModelName=PRODUCT,
        SoftwareVersions=VERSION,
        InstanceCreationDate=today,
        InstanceCreationTime=time,
        StructureSetLabel=PRODUCT,
        StructureSetDate=today,
        StructureSetTime=time,
        ApprovalStatus="UNAPPROVED",
        FrameOfReferenceUID=str(source.get("FrameOfReferenceUID") or generate_uid()),
    )
    for name in COPIED:
        setattr(dataset, name, source.get(name, ""))
    for name in COPIED_NAMES:
        setattr(dataset, name, str(source.get(name, "")))
    dataset.ReferencedFrameOfReferenceSequence = [frame_of(series, dataset)]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian  # contours of more than 64 KiB have no explicit VR
    return dataset


def frame_of(series: Series, dataset: Any) -> Any:
    """Return the reference to frame of reference, study, series and slices."""
    images = [reference_to(header) for header in series.slices]
    of_series = item(SeriesInstanceUID=series.slices[0].series, ContourImageSequence=images)
    study = item(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # Detached Study Management: what the standard asks for here
        ReferencedSOPInstanceUID=dataset.StudyInstanceUID,
        RTReferencedSeriesSequence=[of_series],
    )
    return item(FrameOfReferenceUID=dataset.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def colours(count: int) -> Iterable[tuple[int, int, int]]:
    """Return colours (red, green, blue; 0 to 255) that differ as much as they can."""
    for number in range(count):
        red, green, blue = hsv_to_rgb((number * 0.618) % 1, 0.75, 0.95)  # the golden ratio: neighbours lie far apart
        yield round(red * 255), round(green * 255), round(blue * 255)


def reference_to(header: Header) -> Any:
    """Return the reference to a slice."""
    found = item(ReferencedSOPClassUID=header.sop_class, ReferencedSOPInstanceUID=header.uid)
    if header.frame is not None:
        found.ReferencedFrameNumber = header.frame + 1
    return found


def item(**elements: Any) -> Any:
    """Return a DICOM dataset with these elements."""
    from pydicom import Dataset

    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset
