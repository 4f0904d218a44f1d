"""Small DICOM series, structure sets and segmentations, written with pydicom; positions in mm, in LPS+."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)

AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
ROOT = "1.2.826.0.1.3680043.8.498."


def uid(*parts: object) -> str:
    """The same UID for the same words in every test."""
    return generate_uid(prefix=ROOT, entropy_srcs=[str(part) for part in parts])


def item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, file: Path, syntax: str = ExplicitVRLittleEndian) -> Path:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def slices(
    voxels: np.ndarray,
    patient: str = "P1",
    series: str = "CT",
    orientation: Sequence[float] = AXIAL,
    origin: Sequence[float] = (-10.0, -20.0, 30.0),
    spacing: Sequence[float] = (2.0, 1.5, 3.0),
) -> list[Dataset]:
    """A CT series of int16 voxels [z,y,x] with intercept -1024; spacing in the order x, y, z."""
    row, column = np.reshape(orientation, (2, 3)).astype(float)
    normal = np.cross(row, column)
    stored = (voxels.astype(np.int32) + 1024).astype(np.int16)
    result = []
    for place, pixels in enumerate(stored):
        dataset = item(
            SpecificCharacterSet="ISO_IR 192",
            SOPClassUID=CTImageStorage,
            SOPInstanceUID=uid(patient, series, place),
            Modality="CT",
            PatientID=patient,
            PatientName=patient,
            PatientBirthDate="",
            PatientSex="O",
            StudyInstanceUID=uid(patient, "study"),
            StudyDate="20240102",
            StudyTime="",
            StudyID="1",
            AccessionNumber="",
            ReferringPhysicianName="",
            SeriesInstanceUID=uid(patient, series),
            SeriesNumber=1,
            FrameOfReferenceUID=uid(patient, "frame"),
            PositionReferenceIndicator="",
            InstanceNumber=len(stored) - place,
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            Manufacturer="none",
            ImageOrientationPatient=list(map(float, orientation)),
            ImagePositionPatient=[round(float(v), 6) for v in np.add(origin, normal * spacing[2] * place)],
            PixelSpacing=[float(spacing[1]), float(spacing[0])],
            SliceThickness=float(spacing[2]),
            Rows=pixels.shape[0],
            Columns=pixels.shape[1],
            SamplesPerPixel=1,
            PhotometricInterpretation="MONOCHROME2",
            BitsAllocated=16,
            BitsStored=16,
            HighBit=15,
            PixelRepresentation=1,
            RescaleSlope=1,
            RescaleIntercept=-1024,
        )
        dataset.PixelData = pixels.tobytes()
        result.append(dataset)
    return result


def write_series(folder: Path, datasets: Sequence[Dataset]) -> Path:
    """Write slices under names that say nothing of their order."""
    for place, dataset in enumerate(datasets):
        save(dataset, folder / f"{(place * 7) % 101:03d}_{place}.dcm")
    return folder


Contours = Sequence[tuple[str, Sequence[Sequence[float]]]]  # geometric type, and points in mm


def structure_set(series: Sequence[Dataset], rois: Sequence[tuple[str, Contours]]) -> Dataset:
    first = series[0]
    frame = first.FrameOfReferenceUID
    images = [item(ReferencedSOPClassUID=d.SOPClassUID, ReferencedSOPInstanceUID=d.SOPInstanceUID) for d in series]
    of_series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = item(RTReferencedSeriesSequence=[of_series])
    return item(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=uid(first.SeriesInstanceUID, *(name for name, _ in rois)),
        Modality="RTSTRUCT",
        PatientID=first.PatientID,
        StudyInstanceUID=first.StudyInstanceUID,
        SeriesInstanceUID=uid(first.SeriesInstanceUID, "structures"),
        ReferencedFrameOfReferenceSequence=[item(FrameOfReferenceUID=frame, RTReferencedStudySequence=[study])],
        StructureSetROISequence=[
            item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame)
            for number, (name, _) in enumerate(rois, 1)
        ],
        ROIContourSequence=[
            item(ReferencedROINumber=number, ContourSequence=[contour(*one) for one in contours])
            for number, (_, contours) in enumerate(rois, 1)
        ],
    )


def contour(kind: str, points: Sequence[Sequence[float]]) -> Dataset:
    flat = [f"{value:.6f}" for value in np.ravel(points)]
    return item(ContourGeometricType=kind, NumberOfContourPoints=len(points), ContourData=flat)


def write_structures(file: Path, series: Sequence[Dataset], rois: Sequence[tuple[str, Contours]]) -> Path:
    return save(structure_set(series, rois), file, ImplicitVRLittleEndian)


def box(z: float, x: tuple[float, float] = (-4.9, 4.9), y: tuple[float, float] = (-15.1, -8.1)) -> list[list[float]]:
    """A rectangle in the plane z of an axial series, by default 5 by 5 voxels of `slices`."""
    return [[x[0], y[0], z], [x[1], y[0], z], [x[1], y[1], z], [x[0], y[1], z]]


def segmentation(
    series: Sequence[Dataset],
    segments: Mapping[str, np.ndarray],
    kind: str = "BINARY",
    apart: float | None = None,
    every: int = 1,
) -> Dataset:
    """A segmentation of masks [z,y,x] on the grid of a series: one frame per slice with voxels, every n-th slice."""
    from pydicom.pixels import pack_bits

    first = series[0]
    frames, groups = [], []
    for number, mask in enumerate(segments.values(), 1):
        for place in range(0, len(mask), every):
            if mask[place].any():
                frames.append(mask[place])
                where = item(ImagePositionPatient=series[place].ImagePositionPatient)
                identity = item(ReferencedSegmentNumber=number)
                groups.append(item(PlanePositionSequence=[where], SegmentIdentificationSequence=[identity]))
    pixels = np.stack(frames).astype(np.uint8)
    measures = item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    if apart:
        measures.SpacingBetweenSlices = apart
    shared = item(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[item(ImageOrientationPatient=first.ImageOrientationPatient)],
    )
    binary = kind == "BINARY"
    dataset = item(
        SpecificCharacterSet="ISO_IR 192",
        SOPClassUID=SegmentationStorage,
        SOPInstanceUID=uid(first.SeriesInstanceUID, "seg", *segments),
        Modality="SEG",
        PatientID=first.PatientID,
        StudyInstanceUID=first.StudyInstanceUID,
        SeriesInstanceUID=uid(first.SeriesInstanceUID, "seg"),
        FrameOfReferenceUID=first.FrameOfReferenceUID,
        ReferencedSeriesSequence=[item(SeriesInstanceUID=first.SeriesInstanceUID)],
        SegmentationType=kind,
        SegmentSequence=[item(SegmentNumber=number, SegmentLabel=name) for number, name in enumerate(segments, 1)],
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
        NumberOfFrames=len(pixels),
        Rows=pixels.shape[1],
        Columns=pixels.shape[2],
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        PixelRepresentation=0,
        BitsAllocated=1 if binary else 8,
        BitsStored=1 if binary else 8,
        HighBit=0 if binary else 7,
    )
    if kind == "FRACTIONAL":
        dataset.MaximumFractionalValue = 100
    dataset.PixelData = pack_bits(pixels) if binary else pixels.tobytes() + b"\0" * (pixels.size % 2)
    return dataset
