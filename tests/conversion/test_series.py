"""Slices to volumes: compared with SimpleITK's GDCM reader, and every series that is no volume refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK
from dicom_worlds import AXIAL, CORONAL, SAGITTAL, item, save, slices, uid, write_series
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, JPEGLSLossless, RLELossless

from nnunetv2_conemos.conversion import dicom_files
from nnunetv2_conemos.conversion.dicom_files import require_dicom
from nnunetv2_conemos.conversion.series import read_pixels, read_series, read_volume
from nnunetv2_conemos.datasets.geometry import as_sitk, difference
from nnunetv2_conemos.datasets.volumes import read_image, write_image
from nnunetv2_conemos.errors import UnsupportedError, VolumeError

SHAPE = (5, 6, 7)
OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, -0.8)


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 3000, SHAPE).astype(np.int16)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE, (-1, 0, 0, 0, 1, 0)], ids=str)
def test_a_series_is_what_gdcm_reads(tmp_path, voxels, orientation):
    """Order of slices, voxels, spacing, origin and directions; and the same again after a NIfTI file."""
    folder = write_series(tmp_path / "series", slices(voxels, orientation=orientation))
    volume = read_volume(read_series(folder))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    expected = reader.Execute()
    found = as_sitk(volume.data[0], volume.grid)
    assert np.array_equal(volume.data[0], SimpleITK.GetArrayFromImage(expected))
    assert np.array_equal(volume.data[0], voxels)
    for name in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(found, name)(), getattr(expected, name)(), atol=1e-6), name
    write_image(found, tmp_path / "c_0000.nii.gz")
    again = read_image([tmp_path / "c_0000.nii.gz"], SimpleITKIO(), 1)
    assert difference(volume.grid, again.grid) is None
    assert np.allclose(volume.grid.affine, again.grid.affine, atol=1e-4)
    assert np.array_equal(volume.data, again.data)
    stuff = ("spacing", "origin", "direction")
    for name in stuff:
        assert np.allclose(volume.properties["sitk_stuff"][name], again.properties["sitk_stuff"][name], atol=1e-4)
    assert np.allclose(volume.properties["spacing"], again.properties["spacing"])


def test_slope_and_intercept_are_those_of_each_slice(tmp_path, voxels):
    """As in PET."""
    datasets = slices(voxels)
    for place, dataset in enumerate(datasets):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (place + 1), 3
    stored = voxels.astype(float) + 1024
    expected = stored * (0.5 * np.arange(1, 6))[:, None, None] + 3
    assert np.allclose(read_volume(read_series(write_series(tmp_path / "s", datasets))).data[0], expected)


def test_unsigned_voxels_without_rescaling(tmp_path, voxels):
    datasets = slices(voxels)
    for dataset in datasets:
        dataset.PixelRepresentation = 0
        del dataset.RescaleSlope, dataset.RescaleIntercept
    found = read_volume(read_series(write_series(tmp_path / "s", datasets))).data[0]
    assert np.array_equal(found, (voxels.astype(int) + 1024) % 65536)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_series(tmp_path, voxels, syntax):
    datasets = slices(voxels)
    for place, dataset in enumerate(datasets):
        save(dataset, tmp_path / "s" / f"{place}.dcm")
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(tmp_path / "s" / f"{place}.dcm")
    assert np.array_equal(read_volume(read_series(tmp_path / "s")).data[0], voxels)


def test_a_compression_without_decoder_names_what_to_install(tmp_path, voxels, monkeypatch):
    import pydicom.pixels

    class Missing:
        is_available = False

    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda syntax: Missing)
    dataset = slices(voxels)[0]
    save(dataset, tmp_path / "0.dcm")
    dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(tmp_path / "0.dcm")
    with pytest.raises(VolumeError, match=r"0.dcm: is compressed as 'RLE Lossless'.*pip install .*pylibjpeg"):
        read_pixels(tmp_path / "0.dcm")


def enhanced(datasets: list[Dataset]) -> Dataset:
    """The same series as one file of many frames, out of order."""
    order = [3, 0, 4, 1, 2]
    first = datasets[0]
    whole = Dataset()
    for element in first:
        if element.keyword not in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "PixelData"):
            whole[element.tag] = element
    del whole.RescaleSlope, whole.RescaleIntercept
    whole.SOPClassUID, whole.SOPInstanceUID = EnhancedCTImageStorage, uid("enhanced")
    whole.NumberOfFrames = len(datasets)
    orientation = item(ImageOrientationPatient=first.ImageOrientationPatient)
    measures = item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    whole.SharedFunctionalGroupsSequence = [
        item(PlaneOrientationSequence=[orientation], PixelMeasuresSequence=[measures])
    ]
    whole.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=datasets[place].ImagePositionPatient)],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=-1024)],
        )
        for place in order
    ]
    whole.PixelData = b"".join(datasets[place].PixelData for place in order)
    return whole


def test_a_file_of_many_frames_is_the_same_volume(tmp_path, voxels):
    datasets = slices(voxels, orientation=CORONAL)
    expected = read_volume(read_series(write_series(tmp_path / "s", datasets)))
    save(enhanced(datasets), tmp_path / "e" / "frames.dcm")
    series = read_series(tmp_path / "e")
    assert series.files == (tmp_path / "e" / "frames.dcm",)
    found = read_volume(series)
    assert np.array_equal(found.data, expected.data)
    assert difference(expected.grid, found.grid) is None


def moved(place: int, by: tuple[float, float, float]) -> Callable[[list[Dataset]], None]:
    def change(datasets: list[Dataset]) -> None:
        datasets[place].ImagePositionPatient = list(np.add(datasets[place].ImagePositionPatient, by))

    return change


def put(name: str, value: object, place: int = 2) -> Callable[[list[Dataset]], None]:
    return lambda datasets: setattr(datasets[place], name, value)


def sheared(datasets: list[Dataset]) -> None:
    for place in range(len(datasets)):
        moved(place, (0, 0.7 * place, 0))(datasets)


def colour(datasets: list[Dataset]) -> None:
    for dataset in datasets:
        dataset.SamplesPerPixel = 3


def second_phase(datasets: list[Dataset]) -> None:
    for dataset in slices(np.zeros(SHAPE, dtype=np.int16), patient="Müller"):
        dataset.SOPInstanceUID = uid("second", dataset.SOPInstanceUID)
        datasets.append(dataset)


FAULTS = {
    "a missing slice": (lambda datasets: datasets.pop(2), r"a slice every 3 mm, found 1 missing between 33 and 39 mm"),
    "uneven slices": (moved(2, (0, 0, 1)), r"even distances, found 2 to 4 mm"),
    "shifted slice": (moved(2, (1.1, 0, 0)), r"straight above one another, found 014_2.dcm 0.55 voxels beside"),
    "tilted gantry": (sheared, r"straight above one another.*sheared"),
    "two frames": (put("FrameOfReferenceUID", "1.2.3"), r"one frame of reference in all slices, found 2.*014_2.dcm"),
    "two sizes": (put("Rows", 9), r"one size in all slices, found 2: \(7, 6\) in most, \(7, 9\) in 014_2.dcm"),
    "two spacings": (put("PixelSpacing", [1.0, 1.0]), r"one pixel spacing in all slices"),
    "two orientations": (put("ImageOrientationPatient", list(map(float, CORONAL))), r"one orientation in all slices"),
    "a position twice": (second_phase, r"one slice at each position, found 5 more"),
    "colour": (colour, r"one number per voxel, found colours"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_series_that_is_no_volume_is_named(tmp_path, voxels, fault):
    change, expected = FAULTS[fault]
    datasets = slices(voxels, patient="Müller")
    change(datasets)
    folder = write_series(tmp_path / "s", datasets)
    with pytest.raises(VolumeError, match=expected) as error:
        read_series(folder)
    assert re.search(r"patient 'Müller'.*remove|patient 'Müller'.*move it out|patient 'Müller'.*keep", str(error.value))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ImageOrientationPatient", [1.0, 0.0, 0.0, 0.5, 1.0, 0.0], "rows and columns at right angles"),
        ("PixelSpacing", [0.0, 1.0], "a positive pixel spacing"),
    ],
)
def test_a_header_that_places_voxels_nowhere_is_named(tmp_path, voxels, name, value, expected):
    datasets = slices(voxels)
    for dataset in datasets:
        setattr(dataset, name, value)
    with pytest.raises(VolumeError, match=expected):
        read_series(write_series(tmp_path / "s", datasets))


def test_rounded_positions_are_no_fault(tmp_path, voxels):
    datasets = slices(voxels, spacing=(0.7, 0.7, 0.625))
    for dataset in datasets:
        dataset.ImagePositionPatient = [round(float(v), 2) for v in dataset.ImagePositionPatient]
    assert read_series(write_series(tmp_path / "s", datasets)).grid.spacing == pytest.approx((0.7, 0.7, 0.625))


def test_the_same_slice_in_two_files_is_used_once_and_said(tmp_path, voxels):
    datasets = slices(voxels)
    folder = write_series(tmp_path / "s", [*datasets, datasets[0]])
    series = read_series(folder)
    assert len(series.files) == 5
    assert "1 slice(s) are there twice" in series.notes[0]


def test_truncated_voxels_are_an_error_with_the_file(tmp_path, voxels):
    folder = write_series(tmp_path / "s", slices(voxels))
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(VolumeError, match=file.name):
        read_volume(read_series(folder))


def test_two_series_in_one_folder_are_not_one(tmp_path, voxels):
    write_series(tmp_path / "s", slices(voxels))
    write_series(tmp_path / "s" / "t", slices(voxels, series="MR"))
    files = list((tmp_path / "s").rglob("*.dcm"))
    with pytest.raises(VolumeError, match="the slices of one series, found 2"):
        read_series(files)
    with pytest.raises(VolumeError, match="expected slices of a DICOM series, found none"):
        read_series([])


def test_the_missing_extra_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(dicom_files, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError) as error:
        require_dicom()
    assert str(error.value) == (
        'DICOM needs pydicom and highdicom, which is not installed: pip install "nnunetv2-conemos[dicom]"'
    )
