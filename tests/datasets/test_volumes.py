"""Files as they are on disk: whatever would be read silently wrong is an error that names the file."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from raw_worlds import stripes, write_nifti
from skimage import io

from nnunetv2_conemos.datasets.geometry import grid_of_array
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.datasets.volumes import read_image, read_label_map, require_written, write_label_map
from nnunetv2_conemos.errors import VolumeError

LABEL = np.random.default_rng(0).integers(0, 4, (12, 20, 18)).astype(np.uint8)
SITK, NIBABEL = SimpleITKIO(), NibabelIO()


def saved(folder: Path, ending: str) -> Path:
    file = folder / f"whole{ending}"
    if ending in (".tif", ".tiff"):
        tifffile.imwrite(file, LABEL, compression="zlib")
    elif ending in (".png", ".bmp"):
        io.imsave(file, LABEL[0], check_contrast=False)
    elif ending == ".2.nii.gz":
        nibabel.save(nibabel.Nifti2Image(LABEL, np.eye(4)), file)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(LABEL), str(file), True)
    return file


READERS = {
    ".nii.gz": SITK, ".nii": NIBABEL, ".2.nii.gz": NIBABEL, ".nrrd": SITK, ".mha": SITK, ".gipl": SITK,
    ".tif": Tiff3DIO(), ".tiff": Tiff3DIO(), ".png": NaturalImage2DIO(), ".bmp": NaturalImage2DIO(),
}  # fmt: skip


@pytest.mark.parametrize("ending", READERS)
def test_a_cut_file_is_not_read(tmp_path: Path, ending: str):
    whole, reader = saved(tmp_path, ending), READERS[ending]
    content = whole.read_bytes()
    assert set(np.unique(read_label_map(whole, reader).data)) == {0, 1, 2, 3}
    for tenth in range(10):
        cut = whole.with_name(f"cut{tenth}{ending}")
        cut.write_bytes(content[: int(len(content) * (0.98 if tenth == 9 else tenth / 9))])
        with pytest.raises(VolumeError, match=f"cut{tenth}{ending}"):
            read_label_map(cut, reader)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_longer_than_its_header_says_is_not_read(tmp_path: Path, ending: str):
    image = nibabel.Nifti1Image(LABEL, np.eye(4))
    whole = tmp_path / f"a{ending}"
    nibabel.save(image, whole)
    body = whole.read_bytes() if ending == ".nii" else gzip.decompress(whole.read_bytes())
    shorter = body[:42] + struct.pack("<h", 11) + body[44:]  # dim[1] of 12
    whole.write_bytes(shorter if ending == ".nii" else gzip.compress(shorter))
    with pytest.raises(VolumeError, match=r"damaged: its header says \d+ bytes, found \d+"):
        read_label_map(whole, NIBABEL)


def test_an_unpacked_file_with_the_ending_of_a_packed_one_is_whole_or_not(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(LABEL), str(tmp_path / "a.nii"))
    file.write_bytes((tmp_path / "a.nii").read_bytes())
    assert np.array_equal(read_label_map(file, SITK).data, LABEL)
    file.write_bytes((tmp_path / "a.nii").read_bytes()[:-1])
    with pytest.raises(VolumeError, match="is damaged"):
        read_label_map(file, SITK)


def test_several_volumes_or_components_in_a_file(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(np.stack([LABEL] * 3, axis=-1), np.eye(4)), tmp_path / "four.nii.gz")
    SimpleITK.WriteImage(
        SimpleITK.GetImageFromArray(np.stack([LABEL] * 2, -1), isVector=True), str(tmp_path / "v.nrrd")
    )
    for reader in (SITK, NIBABEL, SimpleITKIOWithReorient(), NibabelIOWithReorient()):
        with pytest.raises(VolumeError, match=r"four.nii.gz: expected one volume, found 4 dim.*3 volume"):
            read_image([tmp_path / "four.nii.gz"], reader, 3)
    with pytest.raises(VolumeError, match=r"v.nrrd: expected one number per voxel, found 2 components"):
        read_label_map(tmp_path / "v.nrrd", SITK)


def test_colour_files(tmp_path: Path):
    reader = NaturalImage2DIO()
    io.imsave(tmp_path / "colour.png", np.stack([LABEL[0]] * 3, -1), check_contrast=False)
    io.imsave(tmp_path / "grey.png", LABEL[0], check_contrast=False)
    with pytest.raises(VolumeError, match=r"colour.png: expected one channel of label values, found 3"):
        read_label_map(tmp_path / "colour.png", reader)
    assert read_image([tmp_path / "colour.png"], reader, 3).data.shape == (3, 1, 20, 18)
    with pytest.raises(VolumeError, match=r"expected 3 channel\(s\) as in dataset.json, found 1 in .*grey.png"):
        read_image([tmp_path / "grey.png"], reader, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_voxels_that_are_not_finite_are_counted(tmp_path: Path, value: float):
    voxels = np.zeros(LABEL.shape)
    voxels[0, 0, :2] = value
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(tmp_path / "a.nrrd"))
    with pytest.raises(VolumeError, match=r"a.nrrd: expected finite numbers, found 2 voxel"):
        read_image([tmp_path / "a.nrrd"], SITK, 1)
    write_nifti(tmp_path / "a.nii.gz", voxels.astype(np.float32))  # of which SimpleITK reads 0
    with pytest.raises(VolumeError, match=r"a.nii.gz: expected finite numbers, found 2 voxel\(s\) .* Replace them"):
        read_image([tmp_path / "a.nii.gz"], SITK, 1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0000001, "1.0000001"), (0.5, "0.5"), (-1.0, "-1.0"), (70000.0, "70000.0")],
)
def test_values_that_are_not_labels_are_shown_with_their_digits(tmp_path: Path, value: float, shown: str):
    voxels = np.zeros(LABEL.shape)
    voxels[0, 0, 0] = value
    write_nifti(tmp_path / "a.nii.gz", voxels)
    with pytest.raises(VolumeError, match=rf"a.nii.gz: expected label values.*not labels: {shown}\."):
        read_label_map(tmp_path / "a.nii.gz", SITK)


@pytest.mark.parametrize("reader", [SITK, NIBABEL], ids=["SimpleITK", "nibabel"])
def test_channels_on_several_grids(tmp_path: Path, reader):
    write_nifti(tmp_path / "c_0000.nii.gz", LABEL)
    write_nifti(tmp_path / "c_0001.nii.gz", LABEL, (1.0, 1.0, 3.0))
    with pytest.raises(VolumeError, match=r"spacing differs between .*c_0000.nii.gz and .*c_0001"):
        read_image([tmp_path / "c_0000.nii.gz", tmp_path / "c_0001.nii.gz"], reader, 2)


def test_sheared_axes_name_the_reader_that_reads_them(tmp_path: Path):
    sheared = np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    image = nibabel.Nifti1Image(LABEL, sheared)
    image.set_qform(np.eye(4), code=0)
    nibabel.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(VolumeError, match=r"not at right angles.*NibabelIO"):
        read_label_map(tmp_path / "a.nii.gz", SITK)
    assert read_label_map(tmp_path / "a.nii.gz", NIBABEL).grid.direction[1] == pytest.approx(0.196, abs=1e-3)


def test_the_spacing_of_a_tiff_volume_counts_only_where_somebody_wrote_it(tmp_path: Path):
    tifffile.imwrite(tmp_path / "c_0000.tif", LABEL)
    tifffile.imwrite(tmp_path / "c.tif", LABEL)
    assert read_image([tmp_path / "c_0000.tif"], Tiff3DIO(), 1).grid.spacing == ()
    (tmp_path / "c.json").write_text(json.dumps({"spacing": [3, 1, 1]}))
    assert read_image([tmp_path / "c_0000.tif"], Tiff3DIO(), 1).grid.spacing == (1, 1, 3)
    assert read_label_map(tmp_path / "c.tif", Tiff3DIO()).grid.spacing == (1, 1, 3)


@pytest.mark.parametrize("spacing", [0.0, np.inf, np.nan])
def test_a_header_that_places_voxels_nowhere(tmp_path: Path, spacing: float):
    nibabel.save(nibabel.Nifti1Image(LABEL, np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[80:84] = struct.pack("<f", spacing)  # pixdim[1]
    (tmp_path / "a.nii").write_bytes(content)
    for read in (lambda file: read_label_map(file, NIBABEL), lambda file: read_image([file], NIBABEL, 1)):
        with pytest.raises(VolumeError, match=r"a\.nii: expected a positive spacing, found .* Correct its header"):
            read(tmp_path / "a.nii")


def test_what_was_written_is_read_again(tmp_path: Path):
    data, properties = SITK.read_seg(str(saved(tmp_path, ".nii.gz")))
    write_label_map(LABEL, tmp_path / "b.nii.gz", SITK, properties)
    require_written(tmp_path / "b.nii.gz", SITK, LABEL)
    other = LABEL.copy()
    other[-1, -1, -1] ^= 1
    with pytest.raises(VolumeError, match=r"b.nii.gz: the map that was written differs"):
        require_written(tmp_path / "b.nii.gz", SITK, other)
    with pytest.raises(VolumeError, match=r"c.nii.gz cannot be written"):
        write_label_map(LABEL, tmp_path / "nowhere" / "c.nii.gz", SITK, properties)
    assert grid_of_array(data.shape[1:], properties).size == (18, 20, 12)


def test_errors_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(VolumeError("a.nii.gz is cut.", "Restore the file.")))
    assert (error.what, error.remedy, str(error)) == (
        "a.nii.gz is cut.", "Restore the file.", "a.nii.gz is cut. Restore the file.",
    )  # fmt: skip
    assert isinstance(error, OSError)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".tif", ".png"])
def test_the_reader_is_nnunets_own_choice(tmp_path: Path, ending: str):
    file = saved(tmp_path, ending)
    for named in ({}, {"overwrite_image_reader_writer": "None"}, {"overwrite_image_reader_writer": "NibabelIO"}):
        content = {"file_ending": ending, **named}
        expected = determine_reader_writer_from_dataset_json(content, str(file), verbose=False)
        assert type(reader_of(content, file)) is expected


def test_a_reader_that_nnunet_does_not_have(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    write_nifti(file, stripes(1))
    for wrong in ("NoSuchReader", ["x"], 3):
        with pytest.raises(ValueError, match=r"overwrite_image_reader_writer.*expected a reader of nnU-Net's"):
            reader_of({"file_ending": ".nii.gz", "overwrite_image_reader_writer": wrong}, file)
    with pytest.raises(ValueError, match=r"file_ending.*expected one that nnU-Net reads .*found '.dcm'"):
        reader_of({"file_ending": ".dcm"}, file)
