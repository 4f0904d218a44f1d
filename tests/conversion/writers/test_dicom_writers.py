"""Label maps back to structure sets and segmentations: reading them again gives the same voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicom_worlds import AXIAL, SAGITTAL, save, slices, write_series

from nnunetv2_conemos.conversion.layouts.dicomseg import DicomSegLayout
from nnunetv2_conemos.conversion.layouts.rtstruct import RTStructLayout
from nnunetv2_conemos.conversion.series import read_series
from nnunetv2_conemos.conversion.writers import dicomseg, rtstruct
from nnunetv2_conemos.datasets.geometry import as_sitk
from nnunetv2_conemos.errors import InputError, VolumeError

SHAPE = (5, 12, 10)
ORGANS = {"Leber": (1,), "Milz links": (2,), "nirgends": (7,)}
REGIONS = {"whole": (1, 2, 3), "core": (2,)}
FORMATS = {"rtstruct": (rtstruct, RTStructLayout), "dicomseg": (dicomseg, DicomSegLayout)}


def prepare(folder: Path, orientation=AXIAL) -> np.ndarray:
    """Write a series, and a label map of noise for it: single voxels, holes, checkerboards."""
    write_series(folder / "ct", slices(np.zeros(SHAPE, dtype=np.int16), patient="Jörg", orientation=orientation))
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    labels[2] = 0
    SimpleITK.WriteImage(as_sitk(labels, read_series(folder / "ct").grid), str(folder / "map.nii.gz"))
    return labels


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL])
@pytest.mark.parametrize("labels", [ORGANS, REGIONS])
def test_what_is_written_is_read_voxel_by_voxel(tmp_path, name, orientation, labels):
    data = prepare(tmp_path, orientation)
    writer, layout = FORMATS[name][0], FORMATS[name][1]()
    writer.write(tmp_path / "map.nii.gz", tmp_path / "ct", labels, tmp_path / "ct" / "result.dcm")
    (case,) = layout.find(tmp_path)
    assert [structure.name for structure in case.structures] == list(labels)
    found = list(layout.read_structures(case, case.structures, layout.read_image(case)))
    for drawn, values in zip(found, labels.values(), strict=True):
        assert np.array_equal(drawn.mask, np.isin(data, values))
        assert drawn.grid is not None
    written = pydicom.dcmread(tmp_path / "ct" / "result.dcm")
    source = pydicom.dcmread(tmp_path / "ct" / "000_0.dcm")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert written[keyword].value == source[keyword].value
    assert written.SeriesInstanceUID != source.SeriesInstanceUID
    assert written.SoftwareVersions


@pytest.mark.parametrize("name", FORMATS)
def test_a_label_map_in_another_orientation_is_turned(tmp_path, name):
    data = prepare(tmp_path)
    writer, layout = FORMATS[name][0], FORMATS[name][1]()
    turned = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(tmp_path / "map.nii.gz")), "ASR")
    SimpleITK.WriteImage(turned, str(tmp_path / "map.nii.gz"))
    writer.write(tmp_path / "map.nii.gz", sorted((tmp_path / "ct").iterdir()), ORGANS, tmp_path / "result.dcm")
    (case,) = layout.find(tmp_path)
    found = list(layout.read_structures(case, case.structures, layout.read_image(case)))
    assert np.array_equal(found[0].mask, data == 1)


@pytest.mark.parametrize("name", FORMATS)
def test_a_label_map_on_another_grid_is_refused(tmp_path, name):
    prepare(tmp_path)
    image = SimpleITK.ReadImage(str(tmp_path / "map.nii.gz"))
    image.SetOrigin((0, 0, 0))
    SimpleITK.WriteImage(image, str(tmp_path / "map.nii.gz"))
    with pytest.raises(VolumeError, match=r"origin differs.*map.nii.gz.*Write the label map for this series"):
        FORMATS[name][0].write(tmp_path / "map.nii.gz", tmp_path / "ct", ORGANS, tmp_path / "result.dcm")
    assert not (tmp_path / "result.dcm").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_names_that_dicom_does_not_hold_are_refused(tmp_path, name):
    prepare(tmp_path)
    for labels in ({"x" * 65: (1,)}, {}):
        with pytest.raises(InputError, match="names of labels of up to 64 characters"):
            FORMATS[name][0].write(tmp_path / "map.nii.gz", tmp_path / "ct", labels, tmp_path / "result.dcm")


def test_a_series_whose_headers_lack_what_a_segmentation_needs_is_named(tmp_path):
    prepare(tmp_path)
    for file in (tmp_path / "ct").iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.StudyID
        save(dataset, file)
    with pytest.raises(VolumeError, match=r"result.dcm cannot be written for the series of .*ct: .*StudyID"):
        dicomseg.write(tmp_path / "map.nii.gz", tmp_path / "ct", ORGANS, tmp_path / "result.dcm")


def test_structures_with_holes_are_marked_and_refer_to_their_slices(tmp_path):
    prepare(tmp_path)
    series = read_series(tmp_path / "ct")
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1, 2:9, 2:9], labels[1, 5, 5], labels[3, 2:4, 2:4] = 1, 0, 2
    SimpleITK.WriteImage(as_sitk(labels, series.grid), str(tmp_path / "map.nii.gz"))
    rtstruct.write(tmp_path / "map.nii.gz", tmp_path / "ct", {"ring": (1,), "box": (2,)}, tmp_path / "rs.dcm")
    ring, box = pydicom.dcmread(tmp_path / "rs.dcm").ROIContourSequence
    assert [contour.ContourGeometricType for contour in ring.ContourSequence] == ["CLOSEDPLANAR_XOR"] * 2
    (contour,) = box.ContourSequence
    assert contour.ContourGeometricType == "CLOSED_PLANAR"
    assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == series.slices[3].uid
    points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    assert points.min(axis=0).tolist() == [-10 + 2 * 1.5, -20 + 1.5 * 1.5, 39]
    assert points.max(axis=0).tolist() == [-10 + 2 * 3.5, -20 + 1.5 * 3.5, 39]
