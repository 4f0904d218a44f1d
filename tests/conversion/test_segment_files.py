"""Segmentations of 3D Slicer, label maps with tables, and both again as files."""

import numpy as np
import pytest
from clinics import SPACING, box, write_seg_nrrd
from raw_worlds import SHAPE, write_nifti

from nnunetv2_conemos.conversion.segment_files import read_layers, segments_of, write_segments
from nnunetv2_conemos.conversion.value_tables import read_values, table_beside
from nnunetv2_conemos.errors import InputError, VolumeError


def test_layers_and_values_of_slicer(tmp_path):
    file = tmp_path / "x.seg.nrrd"
    write_seg_nrrd(file, [("liver", 0, 3), ("Tumör", 1, 1), ("empty", 0, 5)], [box(1, 2, value=3), box(2)])
    assert [tuple(segment) for segment in segments_of(file)] == [("liver", "0:3"), ("Tumör", "1:1"), ("empty", "0:5")]
    layers = read_layers(file)
    assert layers.values() == {"0:3": 42, "1:1": 21}
    assert (layers.mask("0:3") == box(1, 2)).all()
    assert (layers.mask("1:1") == box(2)).all()
    assert not layers.mask("0:5").any()
    assert layers.grid.size == SHAPE[::-1]
    assert layers.grid.spacing == SPACING


def test_a_file_of_one_layer(tmp_path):
    write_seg_nrrd(tmp_path / "x.seg.nrrd", [("liver", 0, 1), ("spleen", 0, 2)], [box(1) + box(2, value=2)])
    assert read_layers(tmp_path / "x.seg.nrrd").values() == {"0:1": 21, "0:2": 21}


def test_files_of_old_versions_have_a_layer_for_each_segment(tmp_path):
    write_seg_nrrd(tmp_path / "x.seg.nrrd", [("a", 0, 1), ("b", 1, 1)], [box(1), box(2)], keys=False)
    assert [segment.key for segment in segments_of(tmp_path / "x.seg.nrrd")] == ["0:1", "1:1"]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], "expected segments in its header"),
        ([("a", 0, 1), ("b", 0, 1)], "the same for a, b"),
        ([("a", 7, 1)], "expected a name, layer and value"),
    ],
)
def test_headers_that_name_no_segments_are_refused(tmp_path, segments, message):
    write_seg_nrrd(tmp_path / "x.seg.nrrd", segments, [box(1)])
    with pytest.raises(VolumeError, match=message):
        segments_of(tmp_path / "x.seg.nrrd")


def test_what_is_no_file_of_slicer_is_refused(tmp_path):
    (tmp_path / "x.seg.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    with pytest.raises(VolumeError, match=r"x.seg.nrrd cannot be read"):
        segments_of(tmp_path / "x.seg.nrrd")


@pytest.mark.parametrize("overlap", [False, True])
def test_segments_are_written_as_they_are_read(tmp_path, overlap):
    grid = read_layers_of(tmp_path).grid
    masks = {"liver": box(1, 2) > 0, "empty": box() > 0, "tumour": box(2 if overlap else 3) > 0}
    write_segments(tmp_path / "y.seg.nrrd", masks, grid)
    assert (b"kinds: list domain" in (tmp_path / "y.seg.nrrd").read_bytes()) == overlap
    layers, segments = read_layers(tmp_path / "y.seg.nrrd"), segments_of(tmp_path / "y.seg.nrrd")
    assert len(layers.data) == 1 + overlap
    assert {name: layers.mask(key).sum() for name, key in segments} == {name: m.sum() for name, m in masks.items()}
    assert all((layers.mask(key) == masks[name]).all() for name, key in segments)
    assert np.allclose(layers.grid.affine, grid.affine)


def read_layers_of(folder):
    write_nifti(folder / "x.nii.gz", box(1), SPACING)
    return read_layers(folder / "x.nii.gz")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("seg.json", '{"0": "background", "3": "liver", "7": "Milz"}'),
        ("seg.json", '{"liver": 3, "Milz": 7}'),
        ("seg.csv", "value,name\n3,liver\n7,Milz\n"),
        ("seg.csv", "3;liver;x\n7;Milz;y\n"),
        ("seg.txt", '# ITK-SNAP\n 0 0 0 0 0 0 0 "Clear"\n 3 255 0 0 1 1 1 "liver"\n 7 0 9 0 0.5 1 1 "Milz"\n'),
    ],
)
def test_tables_value_to_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert table_beside(tmp_path / "seg.nii.gz") == tmp_path / name
    assert read_values(tmp_path / name) == {3: "liver", 7: "Milz"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", "[1]", "found list"),
        ("s.json", '{"1": 2.5}', "found 1: 2.5"),
        ("s.json", '{"x": "liver"}', "expected a value from 0"),
        ("s.csv", "1,liver\n1,spleen\n", "value 1 is named 'liver' and 'spleen'"),
        ("s.csv", "1\n", "expected rows value,name"),
        ("s.csv", "0,background\n", "expected at least one value"),
        ("s.txt", "1 liver\n", "expected lines of ITK-SNAP"),
        ("s.xml", "", "expected a table in a file with"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_values(tmp_path / name)
