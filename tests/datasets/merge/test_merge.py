"""From several raw datasets to one, and nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import tifffile
from matplotlib.figure import Figure
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from raw_worlds import SHAPE, read_nifti, stripes, write_nifti, write_raw
from skimage import io

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.overview import draw
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets import writer
from nnunetv2_conemos.datasets.check import check
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.merge import report
from nnunetv2_conemos.datasets.merge.load import read_datasets
from nnunetv2_conemos.datasets.merge.merge import merge
from nnunetv2_conemos.datasets.merge.spec import DatasetSpec, Recipe

LIVER = {"background": 0, "liver": 1, "tumour": 2}
SPLEEN = {"background": 0, "spleen": 1}


@pytest.fixture
def raw(nnunet_folders, monkeypatch) -> Path:
    """Dataset003_Liver (a, b) and Dataset009_Spleen (a) in nnUNet_raw; pictures are blank, to save time."""
    monkeypatch.setattr(report, "draw", lambda *_: Figure((1, 1)))
    folder = nnunet_folders / "nnUNet_raw"
    write_raw(folder / "Dataset003_Liver", LIVER, {"a": stripes(1, 2), "b": stripes(1)})
    write_raw(folder / "Dataset009_Spleen", SPLEEN, {"a": stripes(0, 1)})
    return folder


def run(*words: str) -> int:
    return cli.main(["merge", *words, "-np", "1"])


def result(raw: Path, name: str = "Dataset100_Abdomen") -> dict:
    return json.loads((raw / name / "dataset.json").read_text())


def table(raw: Path) -> SourceTable:
    return SourceTable.from_dataset_json(result(raw), raw_cases(raw / "Dataset100_Abdomen"))


def label_of(raw: Path, case: str) -> np.ndarray:
    return read_nifti(raw / "Dataset100_Abdomen" / "labelsTr" / f"{case}.nii.gz")


def notes_of(raw: Path, name: str = "Dataset100_Abdomen") -> list[str]:
    return json.loads((raw / name / "merge_report.json").read_text())["notes"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_labels_are_joined_by_name_and_every_case_tells_its_source(raw, capsys):
    assert run("3", "Dataset009_Spleen", "-o", "Dataset100_Abdomen") == 0
    merged = result(raw)
    assert merged["labels"] == {"background": 0, "liver": 1, "tumour": 2, "spleen": 3}
    assert merged["numTraining"] == 3
    assert "regions_class_order" not in merged
    known = table(raw)
    assert known.cases == ["Liver_a", "Liver_b", "Spleen_a"]
    assert known.annotated("Liver_a") == ("liver", "tumour")
    assert known.annotated("Spleen_a") == ("spleen",)
    assert merged["sources"]["Liver"]["cases"] == ["Liver_*"]
    assert merged["sources"]["Liver"]["modality"] == "CT"
    assert (label_of(raw, "Spleen_a") == 3 * stripes(0, 1)).all()
    assert (label_of(raw, "Liver_a") == stripes(1, 2)).all()
    printed = capsys.readouterr().out
    assert "Liver (2)" in printed
    assert "conemos check Dataset100_Abdomen" in printed


def test_python_merges_as_the_command_does(raw):
    """The same by name, id and path; a record has options of one dataset, `rename` those of all."""
    assert run("3", "9", "-o", "Dataset100_Abdomen", "--rename", "spleen=Milz", "--drop", "3:tumour") == 0
    liver = DatasetSpec(dataset=str(raw / "Dataset003_Liver"), drop=("tumour",))
    done = merge([liver, 9], "Dataset101_Abdomen", rename={"spleen": "Milz"}, processes=1)
    assert done.folder == raw / "Dataset101_Abdomen"
    assert done.table.labels.names == ("liver", "Milz")
    assert done.occurs.tolist() == [[2, 0], [0, 1]]
    assert "Spleen: 'spleen' became 'Milz'" in done.changes
    first, again = (contents(raw / name) for name in ("Dataset100_Abdomen", "Dataset101_Abdomen"))
    assert first["dataset.json"] == again["dataset.json"]
    recipe = Recipe(datasets=(liver, DatasetSpec(dataset="9")), rename={"spleen": "lien"})
    merge(recipe, "Dataset102_Abdomen", images="copy", processes=1)
    assert list(result(raw, "Dataset102_Abdomen")["labels"]) == ["background", "liver", "lien"]
    assert (raw / "Dataset102_Abdomen" / "imagesTr").is_dir()
    with pytest.raises(ValueError, match=r"merge: drop: Input should be a valid tuple \(found 'tumour'\)"):
        merge([3, 9], "Dataset103_Abdomen", drop="tumour")


def test_a_dataset_is_one_record_per_case(raw, tmp_path):
    (tmp_path / "who.csv").write_text("case,labels,modality,domain\na,liver,MR,Lyon\nb,,CT,Lyon\n")
    liver = DatasetSpec(dataset="3", annotated=tmp_path / "who.csv", weight=2, rename={"liver": "Leber"})
    dataset, _ = read_datasets(Recipe(datasets=(liver, DatasetSpec(dataset="9"))))
    assert (dataset.name, dataset.channels, dataset.tag_axis) == ("Liver", ("CT",), None)
    assert dataset.labels.renamed == {"liver": "Leber", "tumour": "tumour"}
    a, b = dataset.cases["a"], dataset.cases["b"]
    assert (a.id, a.annotated, a.label) == ("Liver_a", {"Leber"}, raw / "Dataset003_Liver/labelsTr/a.nii.gz")
    assert (b.id, b.annotated, b.label) == ("Liver_b", frozenset(), None)
    assert a.facts.entry() == {"modality": "MR", "domain": "Lyon", "weight": 2}


def test_images_are_referenced_linked_or_copied_and_the_datasets_stay_as_they_are(raw):
    before = contents(raw)
    for kind in ("reference", "link", "copy"):
        assert run("3", "9", "-o", "Dataset100_Abdomen", "--images", kind, "--overwrite") == 0
        image = Path(raw_cases(raw / "Dataset100_Abdomen")["Spleen_a"]["images"][0])
        original = raw / "Dataset009_Spleen" / "imagesTr" / "a_0000.nii.gz"
        assert image.read_bytes() == original.read_bytes()
        assert (image == original) == (kind == "reference")
        assert image.is_symlink() == (kind == "link")
    shutil.rmtree(raw / "Dataset100_Abdomen")
    assert contents(raw) == before


def test_rename_drop_and_keep_apart(raw, monkeypatch):
    monkeypatch.setattr(report, "draw", draw)
    write_raw(raw / "Dataset010_Other", {"background": 0, "Leber": 1, "spleen": 2}, {"c": stripes(1, 2)})
    options = ["--rename", "Dataset010_Other:Leber=liver", "--drop", "3:tumour", "--keep-apart", "spleen"]
    assert run("3", "9", "Dataset010_Other", "-o", "Dataset100_Abdomen", *options) == 0
    assert list(result(raw)["labels"]) == ["background", "liver", "spleen_Spleen", "spleen_Other"]
    assert (label_of(raw, "Liver_a") == stripes(1, 0)).all(), "the dropped tumour is background"
    assert (label_of(raw, "Other_c") == stripes(1, 3)).all()
    assert table(raw).annotated("Other_c") == ("liver", "spleen_Other")
    written = json.loads((raw / "Dataset100_Abdomen" / "merge_report.json").read_text())
    assert "Other: 'Leber' became 'liver'" in written["changes"]
    assert "Liver: 'tumour' was dropped" in written["changes"]
    assert any("--keep-apart liver" in text for text in written["look_at"])
    assert (raw / "Dataset100_Abdomen" / "merge_report.png").stat().st_size > 1000


def test_two_labels_renamed_alike_are_annotated_where_both_are(raw, tmp_path):
    (tmp_path / "who.json").write_text(json.dumps({"a": ["liver"], "b": ["liver", "tumour"]}))
    options = ["--rename", "tumour=liver", "--annotated", f"Dataset003_Liver:{tmp_path / 'who.json'}"]
    assert run("Dataset003_Liver", "9", "-o", "Dataset100_Abdomen", *options) == 0
    assert table(raw).annotated("Liver_a") == ()
    assert table(raw).annotated("Liver_b") == ("liver",)
    assert not label_of(raw, "Liver_a").any(), "a liver without its tumours is no liver of this definition"


def test_a_recipe_says_the_same_and_is_written_beside_the_result(raw, tmp_path):
    assert run("3", "9", "-o", "Dataset100_Abdomen", "--rename", "3:tumour=liver tumour", "--images", "copy") == 0
    recipe = tmp_path / "recipe.yaml"
    shutil.copy(raw / "Dataset100_Abdomen" / "merge_recipe.yaml", recipe)
    assert run("--recipe", str(recipe), "-o", "Dataset101_Again") == 0
    first, again = (contents(raw / name) for name in ("Dataset100_Abdomen", "Dataset101_Again"))
    assert first.keys() == again.keys()
    for name in first.keys() - {"merge_report.png"}:
        assert first[name] == again[name], name


def test_a_recipe_makes_regions_of_labels(raw, tmp_path):
    write_raw(raw / "Dataset010_Whole", {"background": 0, "liver": 1}, {"c": stripes(1, 1)})
    (tmp_path / "recipe.yaml").write_text(
        "datasets:\n- dataset: '3'\n  regions: {liver: [liver, tumour]}\n- dataset: '10'\n  weight: 2\n"
    )
    assert run("--recipe", str(tmp_path / "recipe.yaml"), "-o", "Dataset100_Abdomen") == 0
    labels = result(raw)["labels"]
    assert set(labels["liver"]) == {1, 2}
    assert result(raw)["sources"]["Whole"]["weight"] == 2
    assert np.isin(label_of(raw, "Liver_a")[:, :2], labels["liver"]).all()
    assert (label_of(raw, "Liver_a")[:, 1] == labels["tumour"]).all()
    assert (label_of(raw, "Whole_c")[:, :2] != labels["tumour"]).all()


def test_nested_regions_and_super_region_only_labels_meet(raw):
    nested = {"background": 0, "hippocampus": [1, 2], "posterior": 2}
    write_raw(raw / "Dataset011_Nested", nested, {"n": stripes(1, 2)})
    write_raw(raw / "Dataset012_Whole", {"background": 0, "hippocampus": 1}, {"w": stripes(1, 1)})
    assert run("11", "12", "9", "-o", "Dataset100_Abdomen") == 0
    merged = result(raw)
    manager = LabelManager(merged["labels"], merged["regions_class_order"])
    assert manager.has_regions
    names = list(merged["labels"])[1:]
    known = table(raw)
    assert set(known.annotated("Nested_n")) == {"hippocampus", "posterior"}
    assert known.annotated("Whole_w") == ("hippocampus",)
    nested_map, whole_map = label_of(raw, "Nested_n"), label_of(raw, "Whole_w")
    for name, row_values in (("hippocampus", [True, True]), ("posterior", [False, True]), ("spleen", [False, False])):
        values = np.atleast_1d(merged["labels"][name])
        assert [bool(np.isin(nested_map[0, row, 0], values)) for row in (0, 1)] == row_values
    assert np.isin(whole_map[:, :2], merged["labels"]["hippocampus"]).all()
    probabilities = np.zeros((len(names), 1, 1, 3))
    probabilities[names.index("hippocampus"), ..., :2] = 1
    probabilities[names.index("posterior"), ..., 1] = 1
    written = np.asarray(manager.convert_probabilities_to_segmentation(probabilities))[0, 0]
    assert written.tolist() == [nested_map[0, 0, 0], nested_map[0, 1, 0], 0], "prediction writes what was annotated"


def test_cases_annotated_differently_become_sources_and_hidden_voxels_are_reported(raw, tmp_path):
    (tmp_path / "who.csv").write_text("case,labels\na,liver\nb,\n")
    assert run("Dataset003_Liver", "9", "-o", "Dataset100_Abdomen", "--annotated",
               f"Dataset003_Liver:{tmp_path / 'who.csv'}") == 0  # fmt: skip
    assert (label_of(raw, "Liver_a") == stripes(1)).all(), "tumour is not annotated in a"
    assert not label_of(raw, "Liver_b").any()
    notes = json.loads((raw / "Dataset100_Abdomen" / "merge_report.json").read_text())["notes"]
    assert any("'tumour' was left out of 1 case(s)" in note and "a" in note for note in notes)


def test_a_merged_dataset_can_be_merged_again(raw):
    write_raw(raw / "Dataset010_Kidney", {"background": 0, "kidney": 1}, {"k": stripes(1)})
    assert run("3", "9", "-o", "Dataset050_Two") == 0
    assert run("50", "10", "-o", "Dataset100_Abdomen") == 0
    known = table(raw)
    assert known.annotated("Two_Spleen_a") == ("spleen",)
    assert known.annotated("Two_Liver_b") == ("liver", "tumour")
    assert (label_of(raw, "Two_Spleen_a") == 3 * stripes(0, 1)).all()
    datasets_of = {known.dataset_of(case) for case in known.cases}
    assert datasets_of == {"Liver", "Spleen", "Kidney"}, "they stay datasets of their own"


def test_unlabelled_images_join_and_the_ignore_label_is_kept(raw, tmp_path):
    write_raw(raw / "Dataset010_Scribble", {"background": 0, "kidney": 1, "ignore": 2}, {"k": stripes(1, 2)})
    images = tmp_path / "more"
    images.mkdir()
    write_nifti(images / "x_0000.nii.gz", np.zeros(SHAPE, np.int16))
    assert run("9", "10", "-o", "Dataset100_Abdomen", "--unlabelled", str(images)) == 0
    assert result(raw)["labels"] == {"background": 0, "spleen": 1, "kidney": 2, "ignore": 3}
    assert (label_of(raw, "Scribble_k") == stripes(2, 3)).all()
    assert table(raw).annotated("more_x") == ()
    assert not label_of(raw, "more_x").any()


def test_channels_are_matched_by_name(raw):
    write_raw(raw / "Dataset020_A", SPLEEN, {"a": stripes(1)}, channels=("T1", "T2"))
    write_raw(raw / "Dataset021_B", SPLEEN, {"b": stripes(1)}, channels=("t2w", "T1"))
    assert run("20", "21", "-o", "Dataset100_Abdomen", "--channels", "21:t2w=T2") == 0
    first = raw_cases(raw / "Dataset100_Abdomen")["B_b"]["images"]
    assert [read_nifti(Path(file)).max() for file in first] == [1, 0], "T1 is the second file of B"
    assert result(raw)["sources"]["B"]["modality"] == "t2w+T1"


def test_other_file_endings_are_converted(raw):
    write_raw(raw / "Dataset020_Nrrd", SPLEEN, {"n": stripes(0, 1)}, ending=".nrrd")
    assert run("3", "20", "-o", "Dataset100_Abdomen") == 0
    files = raw_cases(raw / "Dataset100_Abdomen")["Nrrd_n"]
    image = SimpleITK.ReadImage(files["images"][0])
    assert image.GetSpacing() == (1.0, 1.0, 2.0)
    assert (SimpleITK.GetArrayFromImage(image) == 0).all()
    assert (label_of(raw, "Nrrd_n") == 3 * stripes(0, 1)).all()


def test_a_stratified_split_comes_with_it(raw):
    write_raw(raw / "Dataset010_Many", SPLEEN, {f"m{i}": stripes(1) for i in range(7)})
    assert run("3", "10", "-o", "Dataset100_Abdomen") == 0
    folds = json.loads((raw / "Dataset100_Abdomen" / "splits_final.json").read_text())
    assert len(folds) == 5
    assert sorted(case for fold in folds for case in fold["val"]) == table(raw).cases


def truncate(raw: Path) -> None:
    file = raw / "Dataset003_Liver" / "imagesTr" / "b_0000.nii.gz"
    file.write_bytes(file.read_bytes()[:60])


def shift(raw: Path) -> None:
    write_nifti(raw / "Dataset003_Liver" / "labelsTr" / "b.nii.gz", stripes(1), spacing=(1.0, 1.5, 2.0))


def crop(raw: Path) -> None:
    write_nifti(raw / "Dataset003_Liver" / "labelsTr" / "b.nii.gz", stripes(1)[:2])


def foreign(raw: Path) -> None:
    write_nifti(raw / "Dataset003_Liver" / "labelsTr" / "b.nii.gz", stripes(7))


def no_map(raw: Path) -> None:
    (raw / "Dataset003_Liver" / "labelsTr" / "b.nii.gz").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (truncate, ["case 'Liver_b'", "b_0000.nii.gz is damaged", "Restore the file"]),
        (shift, ["case 'Liver_b'", "spacing", "(1, 1, 2)", "(1, 1.5, 2)"]),
        (crop, ["case 'Liver_b'", "size", "(7, 6, 3)", "(7, 6, 2)"]),
        (foreign, ["case 'Liver_b'", "0, 1, 2", "found 7"]),
        (no_map, ["case 'Liver_b'", "expected a label map", "unlabelled"]),
    ],
)
def test_bad_files_end_in_one_message_and_leave_nothing(raw, capsys, spoil, words):
    spoil(raw)
    before = sorted(raw.iterdir())
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert sorted(raw.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["3", "9", "-o", "Abdomen"], ["Dataset100_Name"]),
        (["3", "9", "-o", "Dataset003_Other"], ["Dataset003_Liver", "id"]),
        (["3", "3", "-o", "Dataset100_A"], ["more than once"]),
        (["3", "77", "-o", "Dataset100_A"], ["77"]),
        (["3", "9", "-o", "Dataset100_A", "--rename", "3:tumor=x"], ["'tumor'", "'tumour'"]),
        (["3", "9", "-o", "Dataset100_A", "--rename", "tumour"], ["OLD=NEW"]),
        (["3", "9", "-o", "Dataset100_A", "--drop", "kidney"], ["kidney", "spleen"]),
        (["3", "9", "-o", "Dataset100_A", "--drop", "Dataset010_X:kidney"], ["Dataset010_X"]),
        (["3", "9", "-o", "Dataset100_A", "--keep-apart", "kidney"], ["kidney"]),
        (["3", "9", "-o", "Dataset100_A", "--channels", "9:CT=MR"], ["Spleen", "expected the channels CT", "MR"]),
        (["3", "9", "-o", "Dataset100_A", "--file-ending", ".png"], [".png"]),
        (["3", "9", "-o", "Dataset100_A", "--unlabelled", "nowhere"], ["nowhere"]),
        (["3", "9", "-o", "Dataset100_A", "--annotated", "who.json"], ["name the dataset"]),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_written(raw, capsys, arguments, words):
    before = sorted(raw.iterdir())
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert sorted(raw.iterdir()) == before


def test_a_label_that_its_dataset_lacks_cannot_be_annotated(raw, capsys, tmp_path):
    (tmp_path / "who.json").write_text(json.dumps({"a": ["spleen"], "b": ["liver"]}))
    assert run("3", "9", "-o", "Dataset100_A", "--annotated", f"3:{tmp_path / 'who.json'}") == 2
    assert "dataset 'Liver': case 'a': 'spleen'" in capsys.readouterr().err


def test_channel_numbers_and_equal_ids_are_refused(raw, capsys, tmp_path):
    write_raw(raw / "Dataset020_Two", SPLEEN, {"a": stripes(1)}, channels=("CT", "PET"))
    assert run("3", "20", "-o", "Dataset100_A") == 2
    assert "found CT, PET" in capsys.readouterr().err
    write_raw(raw / "Dataset021_Liver_x", SPLEEN, {"y": stripes(1)})
    write_raw(raw / "Dataset022_Liver", SPLEEN, {"x_y": stripes(1)})
    assert run("21", "22", "-o", "Dataset100_A") == 2
    assert "the same case id twice: liver_x_y" in capsys.readouterr().err


def test_an_existing_target_is_kept_unless_it_may_be_replaced(raw, capsys):
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 0
    before = contents(raw / "Dataset100_Abdomen")
    assert run("3", "-o", "Dataset100_Abdomen") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert contents(raw / "Dataset100_Abdomen") == before
    assert run("3", "-o", "Dataset100_Abdomen", "--overwrite") == 0
    assert list(result(raw)["labels"]) == ["background", "liver", "tumour"]


def test_images_that_two_datasets_share_are_pointed_out(raw):
    """The first case of each dataset has the same image here; the cases stay two."""
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 0
    notes = json.loads((raw / "Dataset100_Abdomen" / "merge_report.json").read_text())["notes"]
    (note,) = (note for note in notes if "the same image" in note)
    assert "in 1 group(s) of cases: Liver_a = Spleen_a" in note
    image = raw / "Dataset009_Spleen" / "imagesTr" / "a_0000.nii.gz"
    write_nifti(image, read_nifti(image) + 1)
    assert run("3", "9", "-o", "Dataset100_Abdomen", "--overwrite") == 0
    notes = json.loads((raw / "Dataset100_Abdomen" / "merge_report.json").read_text())["notes"]
    assert not any("the same image" in note for note in notes)


def test_a_target_that_was_preprocessed_before_is_refused(raw, capsys, monkeypatch, tmp_path):
    """nnU-Net would take the old fingerprint, and assert that the folds are the old ones."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 0
    before = contents(raw / "Dataset100_Abdomen")
    (tmp_path / "Dataset100_Abdomen").mkdir()
    assert run("3", "-o", "Dataset100_Abdomen", "--overwrite") == 2
    assert "was preprocessed from an earlier Dataset100_Abdomen. Delete it" in capsys.readouterr().err
    assert contents(raw / "Dataset100_Abdomen") == before


def with_tags(raw, tags, axis="z"):
    """Case b of the liver dataset is tagged for both labels."""
    file = raw / "Dataset003_Liver" / "dataset.json"
    sources = {
        "drawn": {"cases": ["a"], "annotated": ["liver", "tumour"]},
        "told": {"cases": ["b"], "annotated": [], "tagged": ["liver", "tumour"], "modality": "PET"},
    }
    content = {"sources": sources, "tags": {"axis": axis, "cases": {"b": tags}}}
    file.write_text(json.dumps(json.loads(file.read_text()) | content))


@pytest.mark.parametrize(
    ("words", "tags", "expected"),
    [
        ((), {"liver": [0, 2], "tumour": False}, {"liver": (0, 2), "tumour": ()}),
        (("--rename", "tumour=lesion"), {"liver": [0], "tumour": [1]}, {"lesion": (1,), "liver": (0,)}),
        (("--rename", "tumour=liver"), {"liver": [2], "tumour": [1, 2]}, {"liver": (1, 2)}),
        (("--rename", "tumour=liver"), {"liver": [], "tumour": False}, {"liver": ()}),
        (("--rename", "tumour=liver"), {"liver": [2], "tumour": True}, {"liver": True}),
        (("--drop", "3:liver"), {"liver": [2], "tumour": [1]}, {"tumour": (1,)}),
    ],
)
def test_tags_go_along_under_the_new_names(raw, words, tags, expected):
    with_tags(raw, tags)
    assert run("3", "9", "-o", "Dataset100_Abdomen", *words) == 0
    table = SourceTable.from_dataset_json(result(raw), raw_cases(raw / "Dataset100_Abdomen"))
    assert table.tags("Liver_b") == expected
    assert not table.known("Liver_b").any()
    assert table.sources[table.source_of("Liver_b")].modality == "PET"
    assert not read_nifti(raw / "Dataset100_Abdomen/labelsTr/Liver_b.nii.gz").any()
    assert [case for case in table.cases if table.tagged(case).any()] == ["Liver_b"]


def test_a_region_is_tagged_only_if_all_its_parts_are(raw, tmp_path):
    with_tags(raw, {"liver": [0], "tumour": [1]})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("datasets: [{dataset: '3', regions: {organ: [liver, tumour]}, drop: [liver]}, {dataset: '9'}]")
    assert run("--recipe", str(recipe), "-o", "Dataset100_Abdomen") == 0
    table = SourceTable.from_dataset_json(result(raw), raw_cases(raw / "Dataset100_Abdomen"))
    assert table.tags("Liver_b") == {"organ": (0, 1), "tumour": (1,)}


def test_tags_along_different_axes_are_refused(raw, capsys):
    with_tags(raw, {"liver": [0], "tumour": [1]}, axis="x")
    file = raw / "Dataset009_Spleen" / "dataset.json"
    told = {
        "sources": {"T": {"cases": ["*"], "annotated": [], "tagged": ["spleen"]}},
        "tags": {"cases": {"a": {"spleen": [0]}}},
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 2
    assert "along x in Liver, along z in Spleen" in capsys.readouterr().err


@pytest.mark.parametrize("end", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interrupt_leaves_nothing_and_a_second_try_works(raw, monkeypatch, end):
    """The second case fails; an existing target is as it was."""
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 0
    before = contents(raw)
    keep_images = writer.keep_images

    def fail(job, *arguments):
        if job.case == "Liver_b":
            raise end
        keep_images(job, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(writer, "keep_images", fail)
        status = 2 if isinstance(end, OSError) else 130
        assert run("3", "9", "-o", "Dataset100_Abdomen", "--overwrite") == status
    assert contents(raw) == before
    assert run("3", "9", "-o", "Dataset100_Abdomen", "--overwrite", "--images", "copy") == 0
    assert (raw / "Dataset100_Abdomen" / "imagesTr" / "Liver_b_0000.nii.gz").is_file()


@pytest.mark.slow
def test_several_processes_write_the_same(raw):
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 0
    assert cli.main(["merge", "3", "9", "-o", "Dataset101_Abdomen", "-np", "2"]) == 0
    one, two = (contents(raw / name / "labelsTr") for name in ("Dataset100_Abdomen", "Dataset101_Abdomen"))
    assert one == two


def test_names_that_differ_only_in_writing_are_pointed_out(raw):
    write_raw(raw / "Dataset010_B", {"background": 0, "Spleens": 1}, {"c": stripes(1)})
    assert run("9", "10", "-o", "Dataset100_Abdomen") == 0
    written = json.loads((raw / "Dataset100_Abdomen" / "merge_report.json").read_text())
    assert any("'spleen' and 'Spleens'" in text for text in written["look_at"])


def test_inputs_are_never_overwritten_by_the_result(raw):
    before = contents(raw)
    assert run("3", "9", "-o", "Dataset003_Liver", "--overwrite") == 2
    images = str(raw / "Dataset009_Spleen" / "imagesTr")
    assert run("3", "--unlabelled", images, "-o", "Dataset009_Spleen", "--overwrite") == 2
    assert contents(raw) == before
    assert run("3", "-o", "Dataset050_One") == 0
    assert run("50", "-o", "Dataset003_Liver", "--overwrite") == 2, "images referenced over two corners"
    assert cli.main(["hide", "3", "-o", "Dataset003_Liver", "--per-case", "1", "--overwrite", "-np", "1"]) == 2
    assert before.items() <= contents(raw).items()


def test_channels_of_one_name_keep_their_order(raw, capsys):
    for place, name in ((20, "A"), (21, "B")):
        write_raw(raw / f"Dataset0{place}_{name}", SPLEEN, {"a": stripes(1)}, channels=("noNorm", "noNorm"))
    assert run("20", "21", "-o", "Dataset100_Abdomen") == 0
    files = raw_cases(raw / "Dataset100_Abdomen")["A_a"]["images"]
    assert [read_nifti(Path(file)).max() for file in files] == [0, 1]
    write_raw(raw / "Dataset022_C", SPLEEN, {"a": stripes(1)}, channels=("T1", "noNorm"))
    assert run("20", "22", "-o", "Dataset101_Other", "--channels", "22:T1=noNorm") == 0
    write_raw(raw / "Dataset023_D", SPLEEN, {"a": stripes(1)}, channels=("T1", "T2"))
    assert run("20", "23", "-o", "Dataset102_Other") == 2


def test_tumours_without_their_liver_stay_in_it(raw):
    write_raw(raw / "Dataset020_Nested", {"background": 0, "liver": [1, 2], "tumour": 2}, {"n": stripes(1, 2)})
    write_raw(raw / "Dataset021_Tumour", {"background": 0, "tumour": 1}, {"t": stripes(0, 1)})
    assert run("20", "21", "-o", "Dataset100_Abdomen") == 0
    merged = result(raw)
    assert merged["labels"] == {"background": 0, "liver": [1, 2], "tumour": 2}
    assert (label_of(raw, "Tumour_t") == stripes(0, 2)).all()
    assert table(raw).annotated("Tumour_t") == ("tumour",)


def test_a_region_does_not_hide_a_label_of_its_name(raw, capsys, tmp_path):
    write_raw(raw / "Dataset020_Three", {**LIVER, "spleen": 3}, {"c": stripes(1, 2, 3)})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("datasets:\n- dataset: '20'\n  regions: {spleen: [liver, tumour]}\n")
    assert run("--recipe", str(recipe), "-o", "Dataset100_A") == 2
    assert "region 'spleen' would hide the label spleen" in capsys.readouterr().err


def test_weights_and_modalities_of_sources_survive_a_merge(raw):
    sources = {
        "mr": {"cases": ["a*"], "annotated": ["spleen"], "weight": 5, "modality": "MR"},
        "ct": {"cases": ["b*"], "annotated": ["spleen"]},
    }
    write_raw(raw / "Dataset020_Two", SPLEEN, {"a": stripes(1), "b": stripes(1)}, sources=sources)
    assert run("20", "3", "-o", "Dataset100_Abdomen") == 0
    known = table(raw)
    mr, ct = (known.sources[known.source_of(case)] for case in ("Two_a", "Two_b"))
    assert (mr.weight, mr.modality, ct.weight, ct.modality) == (5, "MR", 1, "CT")
    assert mr.dataset == ct.dataset == "Two"


def test_domains_of_sources_survive_a_merge_and_a_recipe_names_others(raw, tmp_path):
    sources = {name: {"cases": [f"{name}*"], "annotated": ["spleen"], "domain": name.upper()} for name in "ab"}
    write_raw(raw / "Dataset020_Two", SPLEEN, {"a": stripes(1), "b": stripes(1)}, sources=sources)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("datasets:\n- dataset: '20'\n- {dataset: '3', domain: Lyon}\n- dataset: '9'\n")
    assert run("--recipe", str(recipe), "-o", "Dataset100_Abdomen") == 0
    known = table(raw)
    domains = {known.domain_of(case) for case in known.cases if case.startswith("Liver")}
    assert [known.domain_of(case) for case in ("Two_a", "Two_b", "Spleen_a")] == ["A", "B", None]
    assert domains == {"Lyon"}
    repeated = (raw / "Dataset100_Abdomen" / "merge_recipe.yaml").read_text()
    assert "domain: Lyon" in repeated


def test_images_that_are_links_into_a_store_stay_links(raw):
    image = raw / "Dataset009_Spleen" / "imagesTr" / "a_0000.nii.gz"
    image.rename(raw / "blob")
    image.symlink_to(raw / "blob")
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 0
    assert raw_cases(raw / "Dataset100_Abdomen")["Spleen_a"]["images"] == [str(image)]
    assert not [f for f in check("Dataset100_Abdomen", processes=1).findings if f.severity == "error"]


def test_colour_images_hold_their_channels_in_one_file(raw):
    folder = raw / "Dataset020_Colour"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    io.imsave(folder / "imagesTr" / "a_0000.png", np.zeros((6, 7, 3), np.uint8), check_contrast=False)
    io.imsave(folder / "labelsTr" / "a.png", stripes(1)[0], check_contrast=False)
    facts = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": SPLEEN, "file_ending": ".png", "numTraining": 1}
    (folder / "dataset.json").write_text(json.dumps(facts))
    assert run("20", "-o", "Dataset100_Abdomen") == 0
    assert not [f for f in check("Dataset100_Abdomen", processes=1).findings if f.severity == "error"]


def test_spacing_of_3d_tiff_goes_with_the_images(raw):
    folder = raw / "Dataset020_Tiff"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    tifffile.imwrite(folder / "imagesTr" / "a_0000.tif", np.zeros(SHAPE, np.float32))
    tifffile.imwrite(folder / "labelsTr" / "a.tif", stripes(1))
    for file in (folder / "imagesTr" / "a.json", folder / "labelsTr" / "a.json"):
        file.write_text(json.dumps({"spacing": [5, 2, 2]}))
    facts = {"channel_names": {"0": "EM"}, "labels": SPLEEN, "file_ending": ".tif", "numTraining": 1,
             "overwrite_image_reader_writer": "Tiff3DIO"}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(facts))
    assert run("20", "-o", "Dataset100_Abdomen", "--images", "copy") == 0
    target = raw / "Dataset100_Abdomen"
    _, grid = Tiff3DIO().read_images([str(target / "imagesTr" / "Tiff_a_0000.tif")])
    assert list(grid["spacing"]) == [5, 2, 2]
    assert result(raw)["overwrite_image_reader_writer"] == "Tiff3DIO"


def test_values_that_a_reader_cannot_write_are_refused(raw, capsys):
    labels = {"background": 0} | {f"l{i}": i for i in range(1, 301)}
    reader = {"overwrite_image_reader_writer": "SimpleITKIOWithReorient"}
    array = stripes(1).astype(np.uint16)
    array[0, 0, 0] = 300
    write_raw(raw / "Dataset020_Many", labels, {"a": array}, **reader)
    if run("20", "-o", "Dataset100_Abdomen") == 0:
        assert label_of(raw, "Many_a").max() == 300
    else:
        assert "cannot write label values above 255" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": None}, ["dataset.json", "labels"]),
        ({"labels": {"background": 0, "spleen": None}}, ["`labels`, 'spleen'", "None"]),
        ({"labels": {"0": "background", "1": "spleen"}}, ["value -> name", "nnU-Net v1"]),
        ({"labels": {"background": 0, "spleen": 1.5}}, ["`labels`, 'spleen'", "1.5"]),
        ({"channel_names": ["CT"]}, ["channel_names"]),
        ({"dataset": {"a": {"images": ["x"]}}}, ["dataset.a.label"]),
        ([], ["expected a JSON object", "list"]),
        ("no json", ["not valid JSON"]),
    ],
)
def test_broken_dataset_json_is_named(raw, capsys, change, words):
    file = raw / "Dataset009_Spleen" / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(change if isinstance(change, str) else json.dumps(content | change if change else []))
    for command in (["merge", "3", "9"], ["hide", "9", "--per-case", "1"]):
        assert cli.main([*command, "-o", "Dataset100_A", "-np", "1"]) == 2
        message = capsys.readouterr().err
        assert all(word in message for word in words), message
    assert not (raw / "Dataset100_A").exists()


def test_odd_names(raw, tmp_path):
    shutil.copytree(raw / "Dataset009_Spleen", tmp_path / "Open[KBP]")
    assert run(str(tmp_path / "Open[KBP]"), "3", "-o", "Dataset100_Abdomen") == 0
    assert "Open[KBP]_a" in table(raw).cases
    assert run("3", "-o", "Dataset101_Slash/") == 0
    assert (raw / "Dataset101_Slash" / "dataset.json").is_file()
    (raw / "Dataset102_Link").symlink_to(raw / "Dataset101_Slash")
    assert run("3", "-o", "Dataset102_Link") == 2
    assert run("3", "-o", "Dataset102_Link", "--overwrite") == 0
    assert (raw / "Dataset101_Slash" / "dataset.json").is_file(), "the link is replaced, not what it leads to"
    assert not list(raw.glob(".*"))


def test_a_failed_replacement_is_put_back(raw, monkeypatch):
    assert run("3", "9", "-o", "Dataset100_Abdomen") == 0
    before, replace = contents(raw), Path.replace

    def fail(self, target):
        if re.fullmatch(r"\.Dataset100_Abdomen\.[0-9a-f]{16}", self.name):
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        assert run("3", "-o", "Dataset100_Abdomen", "--overwrite") == 130
    assert contents(raw) == before


def test_a_terminated_merge_leaves_no_folder_and_no_process(raw):
    write_raw(raw / "Dataset010_Many", SPLEEN, {f"c{i}": stripes(1) for i in range(120)})
    words = ["merge", "10", "-o", "Dataset100_Abdomen", "--images", "copy", "-np", "2"]
    process = subprocess.Popen([sys.executable, "-m", "nnunetv2_conemos.cli", *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (
        not list(raw.glob(".Dataset100_Abdomen.*/labelsTr/*"))
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    process.terminate()
    status = process.wait(60)
    assert status in (143, 0), "0: it was faster"
    assert not list(raw.glob(".*"))
    assert (raw / "Dataset100_Abdomen").exists() == (status == 0)


def test_ids_with_gaps_are_renumbered(raw):
    gaps = {"background": 0, "core": 1, "edema": 2, "enhancing": 4, "ignore": 9}
    write_raw(raw / "Dataset020_Gaps", gaps, {"a": stripes(1, 2, 4, 9)})
    assert run("20", "3", "-o", "Dataset100_Abdomen") == 0
    merged = result(raw)["labels"]
    assert sorted(v for v in merged.values() if isinstance(v, int)) == [0, *range(1, len(merged))]
    assert label_of(raw, "Gaps_a")[0, :4, 0].tolist() == [merged[n] for n in ("core", "edema", "enhancing", "ignore")]


def test_a_channel_under_another_normalisation_is_pointed_out(raw):
    write_raw(raw / "Dataset020_Mri", {"background": 0, "spleen": 1}, {"a": stripes(1)}, channels=("MRI",))
    assert run("9", "20", "-o", "Dataset100_Abdomen", "--channels", "20:MRI=CT") == 0
    (note,) = [n for n in notes_of(raw) if "MRI" in n]
    assert "dataset 'Mri': channel 'MRI' became 'CT'" in note
    assert "CTNormalization" in note
    write_raw(raw / "Dataset021_T", {"background": 0, "spleen": 1}, {"a": stripes(1)}, channels=("T2",))
    assert run("20", "21", "-o", "Dataset101_Abdomen", "--channels", "21:T2=MRI") == 0
    assert not [n for n in notes_of(raw, "Dataset101_Abdomen") if "T2" in n], "both are scaled image by image"


def test_names_with_commas_are_merged_renamed_and_dropped(raw, capsys):
    odd = {"background": 0, "kidney, left": 1, "a;b": 2, "[bold]x": 3}
    write_raw(raw / "Dataset020_Odd", odd, {"a": stripes(1, 2, 3)})
    options = ["--rename", "20:kidney, left=kidney, right", "--drop", "20:a;b"]
    assert run("20", "9", "-o", "Dataset100_Abdomen", *options) == 0
    assert "[bold]x" in capsys.readouterr().out
    labels = result(raw)["labels"]
    assert {"kidney, right", "[bold]x"} < labels.keys()
    assert not {"kidney, left", "a;b"} & labels.keys()
    assert run("20", "9", "-o", "Dataset101_Abdomen", "--rename", "20:a;b=c=d") == 2
    assert "with one '='" in capsys.readouterr().err
