"""The way back: label maps as masks and as .seg.nrrd, and once around."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clinics import box, write_patients
from raw_worlds import read_nifti, stripes, write_nifti, write_raw

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.conversion.convert import convert
from nnunetv2_conemos.conversion.importing import import_dataset
from nnunetv2_conemos.conversion.segment_files import read_layers, segments_of
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.errors import ConemosError

LABELS = {"background": 0, "liver": 1, "spleen": 2, "rib": 3}
SOURCES = {"A": {"cases": ["a"], "annotated": ["liver", "spleen"]}, "B": {"cases": ["b"], "annotated": ["spleen"]}}


@pytest.fixture
def raw(nnunet_folders: Path) -> Path:
    maps = {"a": stripes(0, 1, 1), "b": stripes(2)}
    return write_raw(nnunet_folders / "nnUNet_raw" / "Dataset003_Old", LABELS, maps, sources=SOURCES)


@pytest.fixture
def predictions(tmp_path: Path, raw: Path) -> Path:
    folder = tmp_path / "predictions"
    folder.mkdir()
    write_nifti(folder / "x.nii.gz", stripes(1, 2))
    (folder / "dataset.json").write_text((raw / "dataset.json").read_text())
    return folder


def test_only_what_is_annotated_is_written_of_a_raw_dataset(raw, tmp_path, capsys):
    assert cli.main(["convert", "3", "--as", "masks", "-o", str(tmp_path / "out"), "-np", "1"]) == 0
    assert "2 case(s), liver, spleen" in capsys.readouterr().out
    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.nii.gz")}
    assert files == {
        f"{name}.nii.gz" for name in ("a/segmentations/liver", "a/segmentations/spleen", "b/segmentations/spleen")
    }
    assert (read_nifti(tmp_path / "out/a/segmentations/liver.nii.gz") == box(1, 2)).all()
    assert not read_nifti(tmp_path / "out/a/segmentations/spleen.nii.gz").any()


def test_predictions_hold_all_labels_that_the_model_learnt(predictions, tmp_path):
    converted = convert(predictions, tmp_path / "out", form="segmentation")
    assert converted.labels == ("liver", "spleen")  # ribs were annotated nowhere
    file = tmp_path / "out" / "x" / "segmentation.seg.nrrd"
    layers = read_layers(file)
    assert {name: int(layers.mask(key).sum()) for name, key in segments_of(file)} == {"liver": 21, "spleen": 21}


def test_regions_overlap_in_layers(tmp_path, nnunet_folders):
    labels = {"background": 0, "liver": [1, 2], "tumour": 2}
    write_raw(nnunet_folders / "nnUNet_raw" / "Dataset003_Old", labels, {"a": stripes(1, 2)})
    convert("Dataset003_Old", tmp_path / "out", form="segmentation")
    layers = read_layers(tmp_path / "out" / "a" / "segmentation.seg.nrrd")
    assert layers.values() == {"0:1": 42, "1:1": 21}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["livr"]}, "--labels: expected some of liver, spleen, found livr"),
        ({"form": "rtstruct"}, r"--as rtstruct: expected the DICOM series of each case, found none for x"),
        ({"dataset": "Dataset077_None"}, "Dataset077_None"),
        ({"origins": Path("none.csv")}, "there is no file none.csv"),
    ],
)
def test_what_does_not_fit_is_refused(predictions, tmp_path, options, message):
    with pytest.raises(ConemosError, match=message):
        convert(predictions, tmp_path / "out", **{"form": "masks", **options})
    assert not (tmp_path / "out").exists()


def test_maps_of_another_model_are_refused(predictions, tmp_path):
    write_nifti(predictions / "x.nii.gz", stripes(1, 7))
    with pytest.raises(ConemosError, match=r"case 'x': .*expected the values 1, 2, 3, found also 7"):
        convert(predictions, tmp_path / "out", form="masks")
    (predictions / "dataset.json").unlink()
    with pytest.raises(ConemosError, match=r"expected dataset.json, as nnU-Net writes it"):
        convert(predictions, tmp_path / "out", form="masks")


def test_a_dataset_of_another_model_is_refused(predictions, raw, tmp_path):
    assert convert(predictions, tmp_path / "out", form="masks", dataset=raw).cases == 1
    other = {"background": 0, "spleen": 1, "liver": 2, "rib": 3}
    write_raw(raw.with_name("Dataset004_Other"), other, {"a": stripes(1)})
    with pytest.raises(ConemosError, match=r"--dataset .*Dataset004_Other: expected the labels of .*\(liver, spleen\)"):
        convert(predictions, tmp_path / "more", form="masks", dataset="Dataset004_Other")


def test_labels_that_are_no_names_of_files_are_refused(tmp_path, nnunet_folders):
    labels = {"background": 0, "left/right": 1}
    write_raw(nnunet_folders / "nnUNet_raw" / "Dataset003_Old", labels, {"a": stripes(1)})
    with pytest.raises(ConemosError, match="expected labels that can be names of files, found 'left/right'"):
        convert("Dataset003_Old", tmp_path / "out", form="masks")


def test_cases_get_their_names_back(tmp_path, nnunet_folders):
    source = write_patients(tmp_path / "clinic", {"Meier": {"liver": box(1)}})
    import_dataset(source, "Dataset100_A", anonymise=tmp_path / "who.csv")
    convert("Dataset100_A", tmp_path / "out", form="masks", origins=tmp_path / "who.csv")
    assert (read_nifti(tmp_path / "out/Meier/segmentations/liver.nii.gz") == box(1)).all()


@pytest.mark.parametrize("form", ["masks", "segmentation"])
def test_once_around_nothing_changes(raw, tmp_path, form):
    out = tmp_path / "out"
    convert(raw, out, form=form)
    for case in ("a", "b"):
        (out / case / "ct.nii.gz").symlink_to(raw / "imagesTr" / f"{case}_0000.nii.gz")
    report = import_dataset(out, "Dataset100_New", labels={name: [] for name in ("liver", "spleen", "rib")})
    new = json.loads((report.folder / "dataset.json").read_text())
    assert new["labels"] == {"background": 0, "liver": 1, "spleen": 2}
    table = SourceTable.from_dataset_json(new, raw_cases(report.folder))
    assert {case: table.annotated(case) for case in table.cases} == {"a": ("liver", "spleen"), "b": ("spleen",)}
    for case in ("a", "b"):
        files = [folder / "labelsTr" / f"{case}.nii.gz" for folder in (raw, report.folder)]
        assert np.array_equal(*map(read_nifti, files))
