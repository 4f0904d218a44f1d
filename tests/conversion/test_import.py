"""`conemos import`: from folders as clinics keep them to a dataset that knows what was not annotated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from clinics import box, write_image, write_patients, write_seg_nrrd
from raw_worlds import read_nifti, stripes, write_nifti, write_raw

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.conversion import case_maps, importing
from nnunetv2_conemos.conversion.importing import import_dataset, import_images, list_names
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.errors import ExistingFileError, InputError

TARGET = "Dataset100_Clinic"
PATIENTS = {
    "p1": {"liver": box(1), "spleen": box(2, value=255)},
    "p2": {"Liver": box(1, 2)},
    "p3": {"liver": box(), "kidney_left": box(4)},
    "p4": {},
}


@pytest.fixture
def raw(nnunet_folders: Path) -> Path:
    return nnunet_folders / "nnUNet_raw"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_patients(tmp_path / "clinic", PATIENTS)


def table_of(raw: Path) -> SourceTable:
    folder = raw / TARGET
    return SourceTable.from_dataset_json(json.loads((folder / "dataset.json").read_text()), raw_cases(folder))


def annotated(raw: Path) -> dict[str, tuple[str, ...]]:
    table = table_of(raw)
    return {case: table.annotated(case) for case in table.cases}


def label(raw: Path, case: str) -> np.ndarray:
    return read_nifti(raw / TARGET / "labelsTr" / f"{case}.nii.gz")


def test_what_is_missing_is_not_annotated_and_what_is_empty_is_absent(raw, source, capsys):
    assert cli.main(["import", str(source), "-o", TARGET, "-np", "1"]) == 0
    content = json.loads((raw / TARGET / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "kidney_left": 1, "liver": 2, "spleen": 3}
    assert content["channel_names"] == {"0": "CT"}
    assert annotated(raw) == {
        "p1": ("liver", "spleen"),
        "p2": ("liver",),
        "p3": ("kidney_left", "liver"),
        "p4": (),
    }
    assert (label(raw, "p1") == 2 * box(1) + 3 * box(2)).all()
    assert (label(raw, "p2") == 2 * box(1, 2)).all()
    assert (label(raw, "p3") == box(4)).all()
    assert not label(raw, "p4").any()
    image = raw / TARGET / "imagesTr" / "p1_0000.nii.gz"
    assert image.resolve() == source / "p1" / "ct.nii.gz"
    shown = capsys.readouterr().out
    assert "1 case(s) have nothing annotated and are kept as unlabelled: p4" in shown
    assert "masks: {case}/ct.nii.gz and {case}/segmentations/{label}.nii.gz" in shown
    report = raw / TARGET / "import"
    assert {file.name for file in report.iterdir()} == {
        "report.json", "names.csv", "origins.csv", "labels_x_sources.png", "names_x_labels.png",
    }  # fmt: skip
    assert sorted(raw.iterdir()) == [raw / TARGET]


def test_empty_may_mean_that_nobody_looked(raw, source):
    report = import_dataset(source, TARGET, empty="unknown", ignore_unknown=True)
    assert report.table.annotated("p3") == ("kidney_left",)


def test_a_list_says_what_was_looked_for_and_is_absent(raw, source, tmp_path):
    (tmp_path / "absent.csv").write_text("case,labels\np2,Spleen;kidney left\np4,liver\n")
    import_dataset(source, TARGET, absent=tmp_path / "absent.csv")
    assert annotated(raw)["p2"] == ("kidney_left", "liver", "spleen")
    assert annotated(raw)["p4"] == ("liver",)


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        ({"p1": ["liver"]}, "case 'p1' shows liver"),
        ({"p9": ["liver"]}, "case 'p9' was not found"),
        ({"p1": ["livr"]}, "'livr' of case 'p1' is no label. Did you mean 'liver'"),
    ],
)
def test_wrong_lists_of_absent_labels_are_refused(raw, source, absent, message):
    with pytest.raises(InputError, match=message):
        import_dataset(source, TARGET, absent=absent)


def test_names_are_listed_written_edited_and_used(raw, source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("Leber: [liver]\nignore: ['kidney*']\n")
    assert cli.main(["import", str(source), "--list", "--labels", "own.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "kidney_left" in shown
    assert "unknown" in shown
    text = (tmp_path / "labels.yaml").read_text()
    assert '# - "spleen"  # 1 case(s), nearest: ' in text
    assert cli.main(["import", str(source), "--list", "--labels", "own.yaml"]) == 2
    assert "labels.yaml exists" in capsys.readouterr().err
    assert cli.main(["import", str(source), "-o", TARGET, "--labels", "labels.yaml", "-np", "1"]) == 2
    assert "'spleen' (1 case(s), nearest: " in capsys.readouterr().err
    edited = text.replace('# - "spleen"', '- "spleen"')  # the last entry before it is that of `ignore`
    (tmp_path / "labels.yaml").write_text(edited.replace("ignore", "Milz"))
    report = import_dataset(source, TARGET, labels=tmp_path / "labels.yaml")
    assert report.table.labels.names == ("Leber", "Milz")


def test_two_names_of_one_label_in_a_case_are_shown_both(raw, tmp_path):
    source = write_patients(tmp_path / "clinic", {"p1": {"Leber": box(1), "liver": box(2)}, "p2": {"liver": box(1)}})
    with pytest.raises(InputError, match=r"case 'p1': expected one structure for 'liver', found 'Leber' \(.*'liver'"):
        import_dataset(source, TARGET, labels={"liver": ["Leber"]})
    assert not any(raw.iterdir())


def test_labels_that_could_be_one_are_noted(raw, tmp_path):
    names = {"Leber": box(1)}, {"liver": box(1)}, {"rib_left": box(2)}, {"left rib": box(2)}, {"heart": box(3)}
    source = write_patients(tmp_path / "clinic", {f"p{number}": own for number, own in enumerate(names)})
    report = import_dataset(source, TARGET)
    noted = [note for note in report.notes if "the same label?" in note]
    assert [note.partition(":")[0] for note in noted] == ["'Leber' and 'liver'", "'left rib' and 'rib_left'"]


def test_an_order_resolves_and_a_report_says_so(raw, tmp_path):
    source = write_patients(tmp_path / "clinic", {"p1": {"liver": box(1, 2), "tumour": box(2)}})
    with pytest.raises(InputError, match="'liver' and 'tumour' share 21 voxels"):
        import_dataset(source, TARGET)
    report = import_dataset(source, TARGET, order=["liver", "tumour"])
    assert (label(raw, "p1") == box(1) + 2 * box(2)).all()
    assert len(report.overlaps) == 1


def test_nested_labels_become_regions_of_nnunet(raw, tmp_path):
    patients = {"p1": {"liver": box(1, 2), "tumour": box(2)}, "p2": {"tumour": box(3)}, "p3": {"liver": box(4)}}
    source = write_patients(tmp_path / "clinic", patients)
    report = import_dataset(source, TARGET, regions=True)
    content = json.loads((raw / TARGET / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "liver": [1, 2], "tumour": 2}
    assert content["regions_class_order"] == [1, 2]
    assert (label(raw, "p1") == box(1) + 2 * box(2)).all()
    assert (label(raw, "p2") == 2 * box(3)).all()
    assert (label(raw, "p3") == box(4)).all()
    assert report.table.labels.has_regions


def test_segmentations_of_slicer(raw, tmp_path):
    source = tmp_path / "clinic"
    for number, case in enumerate(("a", "b")):
        write_image(source / case / "ct.nrrd", number)
    layers = [box(1, value=4) + box(5, value=2), box(4)]
    write_seg_nrrd(source / "a" / "s.seg.nrrd", [("Leber", 0, 4), ("PTV 60", 1, 1), ("Milz", 0, 2)], layers)
    part = box(3)[:, 2:5]  # rows 2 to 4, as 3D Slicer crops
    write_seg_nrrd(source / "b" / "s.seg.nrrd", [("liver", 0, 1)], [part], origin=(0, 2, 0))
    report = import_dataset(source, TARGET, labels={"Liver": ["Leber"], "Spleen": ["Milz"], "ignore": ["PTV*"]})
    assert annotated(raw) == {"a": ("Liver", "Spleen"), "b": ("Liver",)}
    folder = raw / TARGET / "labelsTr"
    assert (read_nifti(folder / "a.nrrd") == box(1) + 2 * box(5)).all()
    assert (read_nifti(folder / "b.nrrd") == box(3)).all()
    assert any("1 structure(s) on a part of the image's grid" in note for note in report.notes)
    assert any("1 name(s) ignored" in note and "PTV 60" in note for note in report.notes)


def test_label_maps_whose_values_differ_from_case_to_case(raw, tmp_path):
    source = tmp_path / "clinic"
    for number, (case, value) in enumerate({"a": 7, "b": 900}.items()):
        write_image(source / case / "ct.nii.gz", number)
        write_nifti(source / case / "seg.nii.gz", box(1).astype(np.uint16) * value)
        (source / case / "seg.json").write_text(json.dumps({"0": "background", str(value): "Leber", "5": "Milz"}))
    import_dataset(source, TARGET)  # by the table of TG-263
    assert annotated(raw) == dict.fromkeys("ab", ("Liver", "Spleen"))
    assert (label(raw, "a") == box(1)).all()
    assert (label(raw, "b") == box(1)).all()


def test_one_table_for_all_label_maps_and_values_without_name(raw, tmp_path):
    source = tmp_path / "clinic"
    write_image(source / "images" / "a.nii.gz")
    (source / "seg").mkdir()
    write_nifti(source / "seg" / "a.nii.gz", box(1, value=2) + box(3, value=9))
    (source / "table.csv").write_text("2,liver\n")
    where = {"image": ["images/{case}.nii.gz"], "mask": "seg/{case}.nii.gz", "table": "table.csv"}
    with pytest.raises(
        InputError, match=r"case 'a': .*a.nii.gz: expected the values of liver \(2\), found also 9 \(21"
    ):
        import_dataset(source, TARGET, **where)
    (source / "table.csv").write_text("2,liver\n9,x\n")
    import_dataset(source, TARGET, **where, labels="names")
    assert (label(raw, "a") == box(1) + 2 * box(3)).all()


def test_a_raw_dataset_of_nnunet(raw, tmp_path):
    labels = {"background": 0, "whole": [2, 5], "core": 5, "other": 9}
    sources = {"A": {"cases": ["c0"], "annotated": ["whole", "core"]}, "B": {"cases": ["c1"], "annotated": ["other"]}}
    maps = {"c0": stripes(0, 2, 5), "c1": stripes(9)}
    source = write_raw(tmp_path / "raw", labels, maps, sources=sources)
    import_dataset(source, TARGET, regions=True)
    content = json.loads((raw / TARGET / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": 2, "other": 3}
    assert annotated(raw) == {"c0": ("whole", "core"), "c1": ("other",)}
    assert (label(raw, "c0") == stripes(0, 1, 2)).all()
    assert (label(raw, "c1") == stripes(3)).all()


def test_patients_with_several_cases_stay_together(raw, tmp_path):
    source = tmp_path / "clinic"
    for number in range(12):
        case = source / f"P{number // 2}" / f"v{number % 2}"
        write_image(case / "ct.nii.gz", number)
        (case / "masks").mkdir()
        write_nifti(case / "masks" / "liver.nii.gz", box(1))
    report = import_dataset(source, TARGET)
    assert report.table.patients["P3_v1"] == "P3"
    for fold in json.loads((raw / TARGET / "splits_final.json").read_text()):
        patients = {part: {case[:2] for case in fold[part]} for part in ("train", "val")}
        assert not patients["train"] & patients["val"]


def test_channels_and_ways_to_keep_images(raw, tmp_path):
    source = tmp_path / "clinic"
    for number, name in enumerate(("t1", "t2")):
        write_image(source / "a" / f"{name}.nii.gz", number)
    (source / "a" / "masks").mkdir()
    write_nifti(source / "a" / "masks" / "liver.nii.gz", box(1))
    where = {"image": ["{case}/t1.nii.gz", "{case}/t2.nii.gz"], "mask": "{case}/masks/{label}.nii.gz"}
    import_dataset(source, TARGET, **where, channels=["T1", "T2"], images="copy")
    folder = raw / TARGET / "imagesTr"
    assert (read_nifti(folder / "a_0001.nii.gz") == read_nifti(source / "a" / "t2.nii.gz")).all()
    assert not (folder / "a_0000.nii.gz").is_symlink()
    import_dataset(source, TARGET, **where, images="reference", overwrite=True)
    content = json.loads((raw / TARGET / "dataset.json").read_text())
    assert content["dataset"]["a"]["images"] == [str(source / "a" / f"t{n}.nii.gz") for n in (1, 2)]
    assert not folder.exists()
    assert list(raw_cases(raw / TARGET)) == ["a"]


def test_images_of_several_kinds_are_converted_to_one(raw, tmp_path):
    source = write_patients(tmp_path / "clinic", {"a": {"liver": box(1)}})
    write_patients(source, {"b": {"liver": box(2)}}, "{case}/ct.mhd", "{case}/segmentations/{label}.nrrd")
    import_dataset(source, TARGET)
    folder = raw / TARGET / "imagesTr"
    assert sorted(file.name for file in folder.iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert (read_nifti(folder / "b_0000.nii.gz") == read_nifti(source / "b" / "ct.mhd")).all()
    assert (label(raw, "b") == box(2)).all()


def test_an_interrupted_import_is_gone_on_with(raw, source, monkeypatch):
    read = []
    plain = case_maps.convert_case

    def convert(task, settings, key):
        if task.case == "p3" and len(read) < 3:
            read.append(task.case)
            raise KeyboardInterrupt
        read.append(task.case)
        return plain(task, settings, key)

    monkeypatch.setattr(case_maps, "convert_case", convert)
    with pytest.raises(KeyboardInterrupt):
        import_dataset(source, TARGET)
    assert read == ["p1", "p2", "p3"]
    assert not (raw / TARGET).exists()
    write_nifti(source / "p2" / "segmentations" / "Liver.nii.gz", box(5))
    import_dataset(source, TARGET)
    assert read[3:] == ["p2", "p3", "p4"]
    assert (label(raw, "p1") == 2 * box(1) + 3 * box(2)).all()
    assert (label(raw, "p2") == 2 * box(5)).all()
    assert sorted(raw.iterdir()) == [raw / TARGET]


def test_nothing_that_exists_is_overwritten(raw, source):
    import_dataset(source, TARGET)
    with pytest.raises(ExistingFileError, match=TARGET):
        import_dataset(source, TARGET)
    import_dataset(source, TARGET, labels={"Leber": ["liver"]}, ignore_unknown=True, overwrite=True)
    assert table_of(raw).labels.names == ("Leber",)


def names_in(folder: Path) -> str:
    """All names and contents of text files below a folder."""
    texts = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".csv", ".yaml", ".txt"):
            texts.append(path.read_text())
        texts += [str(path.readlink())] if path.is_symlink() else []
    return "\n".join(texts)


def test_an_anonymous_import_holds_no_name(raw, tmp_path, capsys):
    patients = {"Meier_Anna": {"liver": box(1), "Meier PTV": box(3)}, "Schulz": {"liver": box(2)}}
    source = write_patients(tmp_path / "clinic", patients)
    table = tmp_path / "private" / "who.csv"
    words = ["import", str(source), "-o", TARGET, "-np", "1", "--labels", str(tmp_path / "l.yaml")]
    (tmp_path / "l.yaml").write_text("liver: []\n")
    assert cli.main([*words, "--anonymise", str(table)]) == 2
    table.parent.mkdir()
    assert cli.main([*words, "--anonymise", str(table)]) == 2  # an unknown name
    said = capsys.readouterr()
    assert "Meier" not in said.err + said.out
    assert "Meier PTV" in (table.parent / "who.messages.txt").read_text()
    assert cli.main([*words, "--anonymise", str(table), "--ignore-unknown"]) == 0
    said = capsys.readouterr()
    everything = said.out + said.err + names_in(raw)
    assert "Meier" not in everything
    assert "Schulz" not in everything
    assert annotated(raw) == {"case_0001": ("liver",), "case_0002": ("liver",)}
    assert (label(raw, "case_0002") == box(2)).all()
    assert table.read_text().startswith("case,original,patient,images,series\ncase_0001,Meier_Anna,")
    assert not (raw / TARGET / "imagesTr" / "case_0001_0000.nii.gz").is_symlink()
    inside = raw / TARGET / "who.csv"
    assert cli.main([*words, "--anonymise", str(inside), "--overwrite"]) == 2


def test_problems_of_an_anonymous_import_are_private(raw, tmp_path, capsys):
    source = write_patients(tmp_path / "clinic", {"Meier": {"liver": box(1, value=3)}})
    table = tmp_path / "who.csv"
    assert cli.main(["import", str(source), "-o", TARGET, "-np", "1", "--anonymise", str(table)]) == 2
    said = capsys.readouterr()
    assert "1 problem(s), which could hold names of patients: see" in said.err
    assert "Meier" not in said.err + said.out
    assert "Meier" in (tmp_path / "who.messages.txt").read_text()


def test_images_to_predict(tmp_path, source, raw):
    imported = import_images(source, tmp_path / "predict")
    assert imported.cases == 4
    files = sorted(file.name for file in imported.folder.iterdir())
    assert files == ["conemos.json", "origins.csv", *(f"p{n}_0000.nii.gz" for n in range(1, 5))]
    bare = tmp_path / "bare"
    write_image(bare / "x_0000.nii.gz")
    assert import_images(bare, tmp_path / "more", anonymise=tmp_path / "who.csv").cases == 1
    assert sorted(file.name for file in (tmp_path / "more").iterdir()) == ["case_0001_0000.nii.gz", "conemos.json"]


def test_listing_reads_no_voxel(tmp_path, source, monkeypatch):
    monkeypatch.setattr(importing, "read_cases", None)
    (source / "p1" / "segmentations" / "liver.nii.gz").write_bytes(b"")
    listing = list_names(source, tmp_path / "names.yaml")
    assert [(use.name, use.cases) for use in listing.names][:2] == [("liver", 2), ("Liver", 1)]
