"""Segmentations to voxels: frames are put by position, on the grid of the image where they lie on its voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_worlds import SAGITTAL, item, save, segmentation, slices, write_series
from pydicom import Dataset

from nnunetv2_conemos.conversion.found import Drawn
from nnunetv2_conemos.conversion.layouts.dicomseg import DicomSegLayout
from nnunetv2_conemos.datasets.geometry import difference
from nnunetv2_conemos.datasets.volumes import Volume
from nnunetv2_conemos.errors import VolumeError

VOXELS = np.zeros((8, 6, 7), dtype=np.int16)


@pytest.fixture
def masks() -> dict[str, np.ndarray]:
    """Two that overlap, and one without voxels."""
    rng = np.random.default_rng(0)
    found = {"Leber": rng.random(VOXELS.shape) < 0.5, "Milz": rng.random(VOXELS.shape) < 0.3}
    found["Leber"][[0, 3, 4]] = False
    return found | {"none": np.zeros(VOXELS.shape, dtype=bool)}


def read(folder: Path, series: list[Dataset], *segmentations: Dataset) -> tuple[list[Drawn], Volume]:
    write_series(folder, series)
    for number, dataset in enumerate(segmentations):
        save(dataset, folder / f"seg{number}.dcm")
    layout = DicomSegLayout()
    (case,) = layout.find(folder)
    image = layout.read_image(case)
    return list(layout.read_structures(case, case.structures, image)), image


@pytest.mark.parametrize("orientation", [(1, 0, 0, 0, 1, 0), SAGITTAL])
def test_binary_segments_are_the_same_voxels(tmp_path, masks, orientation):
    series = slices(VOXELS, orientation=orientation)
    found, image = read(tmp_path, series, segmentation(series, masks))
    for drawn, mask in zip(found, masks.values(), strict=True):
        assert np.array_equal(drawn.mask, mask)
        assert drawn.grid is image.grid
        assert drawn.notes == ()


def test_fractional_segments_are_taken_from_one_half(tmp_path, masks):
    series = slices(VOXELS)
    values = {"Leber": masks["Leber"] * 50 + masks["Milz"] * 49, "none": masks["none"]}
    found, _ = read(tmp_path, series, segmentation(series, values, "FRACTIONAL"))
    assert np.array_equal(found[0].mask, masks["Leber"])
    assert found[0].notes == ("FRACTIONAL segmentation: taken where at least half",)


def test_a_label_map_of_segments(tmp_path, masks):
    series = slices(VOXELS)
    both = masks["Milz"].astype(np.uint8)
    both[masks["Leber"] & ~masks["Milz"]] = 2
    dataset = segmentation(series, {"Milz": both}, "LABELMAP")
    names = ("Hintergrund", "Milz", "Leber")
    dataset.SegmentSequence = [item(SegmentNumber=number, SegmentLabel=name) for number, name in enumerate(names)]
    found, _ = read(tmp_path, series, dataset)
    assert [int(drawn.mask.sum()) for drawn in found] == [int((both == 1).sum()), int((both == 2).sum())]
    assert np.array_equal(found[1].mask, both == 2)


def test_several_segmentations_of_a_series(tmp_path, masks):
    series = slices(VOXELS)
    each = [segmentation(series, {name: mask}) for name, mask in masks.items() if mask.any()]
    found, _ = read(tmp_path, series, *each)
    assert np.array_equal(found[0].mask, masks["Leber"])
    assert np.array_equal(found[1].mask, masks["Milz"])


def test_frames_in_another_order_of_axes_lie_on_the_same_voxels(tmp_path, masks):
    """A segmentation with rows from right to left and slices downwards, of a part of the image."""
    series = slices(VOXELS)
    part = masks["Leber"][1:6, :, 2:]
    turned = slices(part, orientation=(-1, 0, 0, 0, 1, 0), origin=(-10 + 2 * 6, -20, 30 + 3 * 5))
    for dataset in turned:
        dataset.SeriesInstanceUID = series[0].SeriesInstanceUID
    found, image = read(tmp_path, series, segmentation(turned, {"Leber": part[::-1, :, ::-1]}))
    expected = np.zeros(VOXELS.shape, dtype=bool)
    expected[1:6, :, 2:] = part
    assert found[0].grid is image.grid
    assert np.array_equal(found[0].mask, expected)


def test_frames_that_reach_out_of_the_image_are_cut_and_said(tmp_path, masks):
    whole = slices(VOXELS)
    dataset = segmentation(whole, {"Milz": masks["Milz"]})
    found, _ = read(tmp_path, whole[:5], dataset)
    assert np.array_equal(found[0].mask, masks["Milz"][:5])
    assert found[0].notes == (f"{int(masks['Milz'][5:].sum())} voxel(s) lie outside the image and are left out",)


@pytest.mark.parametrize(("apart", "thickness"), [(6.0, 3.0), (None, 6.0)])
def test_thicker_frames_keep_their_own_grid(tmp_path, masks, apart, thickness):
    series = slices(VOXELS)
    dataset = segmentation(series, {"Milz": masks["Milz"]}, apart=apart, every=2)
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = thickness
    found, image = read(tmp_path, series, dataset)
    assert found[0].grid.spacing == (2.0, 1.5, 6.0)
    assert str(difference(image.grid, found[0].grid)).startswith("expected (7, 6, 8), found (7, 6, 4)")
    assert np.array_equal(found[0].mask, masks["Milz"][::2])


def test_frames_between_the_slices_keep_their_own_grid(tmp_path, masks):
    series = slices(VOXELS)
    shifted = slices(VOXELS, origin=(-10, -20, 31.5))
    found, image = read(tmp_path, series, segmentation(shifted, {"Milz": masks["Milz"]}))
    differs = difference(image.grid, found[0].grid)
    assert differs is not None
    assert differs.name == "origin"


def no_positions(dataset: Dataset) -> None:
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PlanePositionSequence


def fewer_positions(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def uneven(dataset: Dataset) -> None:
    where = dataset.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
    where.ImagePositionPatient = [-10.0, -20.0, 30.77]
    where = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0]
    where.ImagePositionPatient = [-10.0, -20.0, 32.0]


def cut(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:4]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (no_positions, "position, orientation and spacing of every frame"),
        (fewer_positions, r"expected 8 positions of frames, found 7"),
        (uneven, "frames at even distances above one another"),
        (cut, "cannot be read"),
    ],
)
def test_a_segmentation_that_says_not_where_it_lies_is_named(tmp_path, masks, change, expected):
    series = slices(VOXELS)
    dataset = segmentation(series, {"Milz": masks["Milz"]})
    change(dataset)
    with pytest.raises(VolumeError, match=expected) as error:
        read(tmp_path, series, dataset)
    assert "seg0.dcm" in str(error.value)
