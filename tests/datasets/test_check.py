"""`conemos check`: every mistake is found, named and ends in status 1; a sound dataset passes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunetv2_conemos import cli, environment, files
from nnunetv2_conemos.annotations.overview import draw
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.commands import check as command
from nnunetv2_conemos.datasets import folders as datasets
from nnunetv2_conemos.datasets.check import check
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.doorway import DOORWAY, PACKAGE, VARIABLE, doorway_folder
from nnunetv2_conemos.errors import Finding

NAME = (
    "Dataset901_Phantom"  # sources: site_a = liver (1), site_b = spleen (2) and gallbladder (4), site_c = stomach (3)
)


def change(phantom: Path, **entries: object) -> None:
    files.write_json(phantom / "dataset.json", read_dataset_json(phantom) | entries)


def sources_of(phantom: Path) -> dict:
    return read_dataset_json(phantom)["sources"]


def repaint(phantom: Path, case: str, paint: Callable[[np.ndarray], np.ndarray]) -> None:
    file = phantom / "labelsTr" / f"{case}.nii.gz"
    before = SimpleITK.ReadImage(str(file))
    after = SimpleITK.GetImageFromArray(paint(SimpleITK.GetArrayFromImage(before)))
    after.CopyInformation(before)
    SimpleITK.WriteImage(after, str(file))


def corner(value: int) -> Callable[[np.ndarray], np.ndarray]:
    def paint(label_map: np.ndarray) -> np.ndarray:
        label_map[:2, :2, :2] = value
        return label_map

    return paint


def errors(dataset: str = NAME) -> list[str]:
    return [f"{f.where} {f.what} {f.remedy}" for f in check(dataset, processes=1).findings if f.severity == "error"]


def test_a_sound_dataset_has_no_findings(phantom: Path):
    report = check("901", processes=1)
    assert report.findings == []
    assert report.occurs is not None
    assert report.occurs.tolist() == [[3, 0, 0, 0], [0, 3, 0, 3], [0, 0, 3, 0]]


@pytest.mark.slow
def test_processes_find_the_same(phantom: Path):
    repaint(phantom, "site_a_01", corner(2))
    assert check(NAME, processes=2).findings == check(NAME, processes=1).findings != []


def test_no_sources_means_annotated_for_everything(phantom: Path):
    dataset_json = read_dataset_json(phantom)
    del dataset_json["sources"]
    files.write_json(phantom / "dataset.json", dataset_json)
    report = check(NAME, processes=1)
    assert report.findings == []
    assert report.occurs is not None
    assert report.occurs.tolist() == [[3, 3, 3, 3]]


def test_values_of_labels_not_annotated_name_case_value_and_label(phantom: Path):
    repaint(phantom, "site_a_01", corner(2))
    repaint(phantom, "site_a_02", corner(2))
    (error,) = errors()
    assert "source 'site_a', 2 case(s): site_a_01, site_a_02" in error
    assert "value 2 (spleen) belongs to no label annotated there" in error


def test_values_outside_labels_are_told_apart(phantom: Path):
    repaint(phantom, "site_c_00", corner(9))
    (error,) = errors()
    assert "site_c_00 value 9 is not in `labels`" in error


def test_declared_but_never_present_is_an_error_once_per_source(phantom: Path):
    sources = sources_of(phantom)
    sources["site_a"]["annotated"] = ["liver", "stomach"]
    change(phantom, sources=sources)
    (error,) = errors()
    assert "source 'site_a', label 'stomach' declared annotated, but in none of 3 case(s)" in error


def test_of_one_or_two_cases_it_may_be_true(phantom: Path):
    sources = sources_of(phantom)
    one = {"cases": ["site_a_00"], "annotated": ["liver", "stomach"]}
    change(phantom, sources=sources | {"site_a": {"cases": ["site_a_0[12]"], "annotated": ["liver"]}, "one": one})
    (finding,) = check(NAME, processes=1).findings
    assert (finding.severity, finding.where) == ("warning", "source 'one', label 'stomach'")


def test_of_many_small_sources_it_is_hardly_true(phantom: Path):
    labels = read_dataset_json(phantom)["labels"] | {"pancreas": 5}
    sources = sources_of(phantom)
    rest = {name: source for name, source in sources.items() if name != "site_a"}
    alone = {f"a{i}": {"cases": [f"site_a_0{i}"], "annotated": ["liver", "pancreas"]} for i in range(3)}
    change(phantom, labels=labels, sources=rest | alone)
    found = {(finding.severity, finding.where) for finding in check(NAME, processes=1).findings}
    assert found == {("error", f"source 'a{i}', label 'pancreas'") for i in range(3)}


def test_images_that_cannot_be_read_are_named(phantom: Path):
    (phantom / "imagesTr" / "site_b_01_0000.nii.gz").write_bytes(b"")
    (error,) = errors()
    assert "site_b_01" in error
    assert "site_b_01_0000.nii.gz is damaged" in error


def test_absent_in_some_cases_is_no_finding(phantom: Path):
    repaint(phantom, "site_c_00", np.zeros_like)
    report = check(NAME, processes=1)
    assert report.findings == []
    assert report.occurs is not None
    assert report.occurs[2, 2] == 2


def test_unequal_sources_without_a_dataset_are_a_warning(phantom: Path):
    """Nine cases in datasets of 1, 1 and 7, equally often: as if there were 9 / (1 + 1 + 1/7) = 4.2 of them."""
    cases = [f"site_{site}_0{i}" for site in "abc" for i in range(3)]
    every = ["liver", "spleen", "stomach", "gallbladder"]
    parts = {"one": cases[:1], "two": cases[1:2], "rest": cases[2:]}

    def warnings(**more: dict) -> list[Finding]:
        sources = {name: {"cases": of, "annotated": every, **more.get(name, {})} for name, of in parts.items()}
        change(phantom, sources=sources)
        return [f for f in check(NAME, processes=1).findings if "`dataset`" in f.what]

    (found,) = warnings()
    assert found.severity == "warning"
    assert "3 sources name no `dataset`" in found.what
    assert "as if 4 of the 9 annotated cases" in found.what
    assert '"dataset": "NAME"' in found.remedy
    same = {"dataset": "site"}
    assert warnings(one=same, two=same, rest=same) == []
    assert warnings(one={"dataset": "x"}, two={"dataset": "y"}) == [], "only one is left without, on purpose"


def test_labels_nobody_annotates(phantom: Path):
    change(phantom, labels=read_dataset_json(phantom)["labels"] | {"pancreas": 5})
    (finding,) = check(NAME, processes=1).findings
    assert (finding.severity, finding.where) == ("warning", "label 'pancreas'")
    assert "is annotated by no source" in finding.what


def test_labels_that_are_only_tagged(phantom: Path):
    sources = sources_of(phantom)
    cases = [case for case in datasets.raw_cases(phantom) if case.startswith("site_c")]
    change(
        phantom,
        labels=read_dataset_json(phantom)["labels"] | {"pancreas": 5},
        sources=sources | {"site_c": sources["site_c"] | {"tagged": ["pancreas"]}},
        tags={"cases": {case: {"pancreas": [1]} for case in cases}},
    )
    (finding,) = check(NAME, processes=1).findings
    assert (finding.severity, finding.where) == ("warning", "label 'pancreas'")
    assert "CMERTrainer learns it" in finding.what


def test_a_dataset_without_a_labelled_voxel_cannot_be_planned(phantom: Path):
    names = [name for name in read_dataset_json(phantom)["labels"] if name != "background"]
    cases = list(datasets.raw_cases(phantom))
    for case in cases:
        repaint(phantom, case, np.zeros_like)
    tags = {case: dict.fromkeys(names, False) for case in cases}
    change(phantom, sources={"T": {"cases": ["*"], "annotated": [], "tagged": names}}, tags={"cases": tags})
    (found,) = errors()
    assert "no label map shows any label" in found


def test_sources_that_do_not_fit_are_one_finding_with_the_reason(phantom: Path):
    change(phantom, sources=sources_of(phantom) | {"site_d": {"cases": ["site_d_*"], "annotated": ["liver"]}})
    report = check(NAME, processes=1)
    (error,) = report.findings
    assert "'site_d_*' matches no case" in error.what
    assert report.table is None


def test_copies_that_differ(phantom: Path, nnunet_folders: Path):
    copy = nnunet_folders / "nnUNet_preprocessed" / NAME
    copy.mkdir()
    files.write_json(copy / "dataset.json", read_dataset_json(phantom) | {"sources": {}})
    (error,) = errors()
    assert "`sources` differs between raw and preprocessed" in error


def test_missing_and_broken_maps_are_named(phantom: Path):
    (phantom / "labelsTr" / "site_a_00.nii.gz").write_bytes(b"no image")
    (phantom / "labelsTr" / "site_b_00.nii.gz").unlink()
    repaint(phantom, "site_c_00", lambda label_map: label_map + np.float32(0.5))
    broken, missing, fractional = errors()
    assert "case 'site_b_00' there is no" in missing
    assert "a map of zeros" in missing
    assert "case 'site_a_00'" in broken
    assert "it has no valid NIfTI header" in broken
    assert "found values that are not labels: 0.5, 3.5" in fractional


def test_a_first_image_that_no_reader_reads_is_named_like_any_other(phantom: Path):
    (phantom / "imagesTr" / "site_a_00_0000.nii.gz").write_bytes(b"no image")
    (error,) = errors()
    assert "case 'site_a_00'" in error
    assert "site_a_00_0000.nii.gz is damaged" in error


def test_a_source_without_a_readable_map_is_not_also_called_absent(phantom: Path):
    for file in (phantom / "labelsTr").iterdir():
        file.unlink()
    assert len(errors()) == 9


def test_the_ignore_label_may_stand_in_annotated_cases_only(phantom: Path):
    sources = sources_of(phantom)
    sources["site_c"]["annotated"] = []
    labels = read_dataset_json(phantom)["labels"]
    del labels["stomach"]
    labels |= {"gallbladder": 3, "ignore": 4}
    change(phantom, sources=sources, labels=labels)
    repaint(phantom, "site_a_00", corner(4))
    for case in ("site_b_00", "site_b_01", "site_b_02"):
        repaint(phantom, case, lambda label_map: np.where(label_map == 4, 3, label_map))
    for case in ("site_c_01", "site_c_02"):
        repaint(phantom, case, np.zeros_like)
    repaint(phantom, "site_c_00", lambda label_map: corner(4)(np.zeros_like(label_map)))
    (error,) = errors()
    assert "case 'site_c_00' is unlabelled, but its map holds the ignore label (4)" in error


def test_regions_allow_the_values_of_annotated_regions(phantom: Path):
    sources = sources_of(phantom)
    sources["site_a"]["annotated"] = ["whole"]
    sources["site_b"]["annotated"] = ["core"]
    sources["site_c"]["annotated"] = ["rest"]
    labels = {"background": 0, "whole": [1, 2], "core": 2, "rest": [3, 4]}
    change(phantom, sources=sources, labels=labels, regions_class_order=[1, 2, 3])
    repaint(phantom, "site_a_00", corner(2))
    (error,) = errors()
    assert "source 'site_b', 3 case(s)" in error
    assert "value 4 (rest) belongs to no label annotated there" in error


@pytest.mark.parametrize("key", ["labels", "file_ending", "channel_names"])
def test_a_dataset_json_without_a_required_key(phantom: Path, key: str):
    dataset_json = read_dataset_json(phantom)
    del dataset_json[key]
    files.write_json(phantom / "dataset.json", dataset_json)
    (error,) = errors()
    assert f"lacks {key}" in error


def test_the_picture_frames_what_is_declared_but_absent(phantom: Path, tmp_path: Path):
    sources = sources_of(phantom)
    sources["site_a"]["annotated"] = ["liver", "stomach"]
    change(phantom, sources=sources)
    report = check(NAME, processes=1)
    assert report.table is not None
    assert report.occurs is not None
    figure = draw(report.table, report.occurs)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["3", "3", "0/3", "3", "3"]
    (frame,) = axes.patches
    assert frame.get_xy() == (0, 2)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["site_a (3)", "site_b (3)", "site_c (3)"]


@pytest.fixture
def sound_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "check_environment", list)


@pytest.mark.usefixtures("sound_environment")
def test_the_exit_status_tells(phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = tmp_path / "sources.png"
    assert cli.main(["check", "901", "-np", "1", "--figure", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    repaint(phantom, "site_a_01", corner(2))
    assert cli.main(["check", "901", "-np", "1"]) == 1
    printed = capsys.readouterr().out
    assert "value 2 (spleen)" in printed
    assert "1 error(s), 0 warning(s)" in printed
    assert cli.main(["check", "902", "-np", "1"]) == 2


def test_warnings_alone_pass(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(command, "check_environment", lambda: [Finding("warning", "[x]", "odd [y]", "nothing")])
    assert cli.main(["check"]) == 0
    assert "odd [y]" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["2.8.1", "2.8.2", "2.8.10+local"])
def test_versions_in_range(version: str):
    assert environment.check_version(version) == []


@pytest.mark.parametrize("version", ["2.8", "2.8.0", "2.9.0", "2.10", "3.0.0"])
def test_versions_out_of_range(version: str):
    (finding,) = environment.check_version(version)
    assert finding.severity == "error"
    assert finding.remedy == "pip install 'nnunetv2>=2.8.1,<2.9'"


def test_the_range_is_the_one_of_the_package():
    from importlib.metadata import requires

    (wanted,) = (line for line in requires("nnunetv2-conemos") or [] if line.startswith("nnunetv2"))
    assert set(wanted.removeprefix("nnunetv2").split(",")) == {">=2.8.1", "<2.9"}


def test_folders(tmp_path: Path):
    findings = environment.check_folders({"nnUNet_raw": "/no/where", "nnUNet_results": str(tmp_path)})
    assert [(f.severity, f.where) for f in findings] == [("error", "nnUNet_raw"), ("error", "nnUNet_preprocessed")]


def test_trainer_path_is_sound_beside_other_folders(tmp_path: Path):
    value = os.pathsep.join([str(tmp_path), str(doorway_folder())])
    assert environment.check_trainer_path(value, doorway_folder()) == []


@pytest.mark.parametrize("value", ["", os.pathsep])
def test_trainer_path_missing(value: str):
    (finding,) = environment.check_trainer_path(value, doorway_folder())
    assert "is not set" in finding.what
    assert 'eval "$(conemos env)"' in finding.remedy


@pytest.mark.parametrize("folder", [PACKAGE, PACKAGE.parent, Path(np.__path__[0]).parent])
def test_trainer_path_at_a_whole_package_is_explained(folder: Path):
    """The package, the checkout, site-packages: each alone, and each beside the right folder."""
    whole, lacking = environment.check_trainer_path(str(folder), doorway_folder())
    assert "imports every file below it" in whole.what
    assert f"does not name {doorway_folder()}, the folder of {DOORWAY}" in lacking.what
    both = os.pathsep.join([str(doorway_folder()), str(folder)])
    assert environment.check_trainer_path(both, doorway_folder()) == [whole]


def test_trainer_path_that_does_not_exist():
    value = os.pathsep.join([str(doorway_folder()), "/no/where"])
    (finding,) = environment.check_trainer_path(value, doorway_folder())
    assert finding.severity == "warning"


@pytest.mark.slow
def test_nnunet_finds_the_trainer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, str(doorway_folder()))
    assert environment.check_lookup() == []


@pytest.mark.parametrize(
    ("status", "output", "words"),
    [
        (0, "a warning\ntheirs\n", "finds another class of this name, in theirs"),
        (
            1,
            "Traceback\nModuleNotFoundError: No module named 'timm'\n",
            "does not find it: ModuleNotFoundError: No mod",
        ),
        (1, "", "does not find it: no output"),
    ],
)
def test_what_nnunet_finds_instead_is_said(monkeypatch: pytest.MonkeyPatch, status: int, output: str, words: str):
    monkeypatch.setattr(environment, "_python", lambda _: (status, output))
    (finding,) = environment.check_lookup()
    assert (finding.severity, finding.where) == ("error", environment.TRAINER)
    assert words in finding.what


@pytest.mark.slow
def test_nnunet_finds_the_first_trainer_of_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "theirs.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
        "class ConditionalFiLMTrainer(nnUNetTrainer): pass\n"
    )
    monkeypatch.setenv(VARIABLE, os.pathsep.join([str(tmp_path), str(doorway_folder())]))
    (finding,) = environment.check_lookup()
    assert "another class of this name, in theirs" in finding.what


def test_a_broken_torchvision_is_a_plain_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment_now = {name: str(tmp_path) for name in environment.FOLDERS} | {VARIABLE: str(doorway_folder())}
    (finding,) = environment.check_environment(environment_now)  # the look-up would fail too: said once
    assert (finding.severity, finding.where) == ("error", "torchvision")
    assert "operator torchvision::nms does not exist" in finding.what
    assert "it will find no trainer of any plugin" in finding.what
    assert "built for torch" in finding.remedy


def test_a_torchvision_built_for_another_torch_is_a_warning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(environment, "_python", lambda _: (0, ""))
    monkeypatch.setattr(environment.metadata, "requires", lambda _: ["numpy", "torch==1.0.1"])
    (finding,) = environment.check_torchvision()
    assert finding.severity == "warning"
    assert "was built for torch 1.0.1" in finding.what


def test_images_that_are_gone_too_few_or_on_another_grid(phantom: Path):
    label = phantom / "labelsTr" / "site_b_01.nii.gz"
    image = SimpleITK.ReadImage(str(label))
    image.SetSpacing((1.0, 2.0, 3.0))
    SimpleITK.WriteImage(image, str(label))
    extra = phantom / "imagesTr" / "site_c_01_0001.nii.gz"
    extra.write_bytes((phantom / "imagesTr" / "site_c_01_0000.nii.gz").read_bytes())
    spacing, channels = errors()
    assert "case 'site_b_01' spacing differs" in spacing
    assert "found (1, 2, 3)" in spacing
    assert "case 'site_c_01' expected 1 channel(s), found 2" in channels


def test_references_to_images_that_are_gone(phantom: Path):
    entries = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
               for case in datasets.raw_cases(phantom)}  # fmt: skip
    change(phantom, dataset=entries)
    assert errors() == []
    (phantom / "imagesTr" / "site_a_02_0000.nii.gz").unlink()
    (error,) = errors()
    assert "case 'site_a_02' there is no" in error
    assert "merge again" in error
    for file in (phantom / "imagesTr").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="none of the images"):
        check(NAME, processes=1)


def test_labels_that_differ_only_in_writing(phantom: Path):
    labels = {"background": 0, "liver": 1, "Livers": 2, "stomach": 3, "gallbladder": 4}
    sources = sources_of(phantom) | {"site_b": {"cases": ["site_b_*"], "annotated": ["Livers", "gallbladder"]}}
    change(phantom, labels=labels, sources=sources)
    (warning,) = [f for f in check(NAME, processes=1).findings if f.severity == "warning"]
    assert "'liver' and 'Livers'" in warning.where


def test_the_picture_of_many_sources_sums_up_the_last_ones():
    labels = {"background": 0, **{f"organ {number}": number for number in range(1, 41)}}
    sources = {f"s{number}": {"cases": [f"c{number}"], "annotated": [f"organ {number}"]} for number in range(1, 41)}
    cases = [f"c{number}" for number in range(1, 41)]
    table = SourceTable.from_dataset_json({"labels": labels, "sources": sources}, cases)
    axes = draw(table, table.counts()).axes[0]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert len(names) == 30
    assert names[-1] == "11 more sources (11)"
    assert sum(text.get_text() == "1" for text in axes.texts) == 40
