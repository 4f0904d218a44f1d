"""`conemos evaluate`: the measures, what counts, the files it writes, bad input; and nnU-Net's own summary, reduced."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from pools import pools_of_threads
from skimage import io

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.tags import Axis
from nnunetv2_conemos.cli import main
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.evaluation.evaluate import evaluate, table_of_sources
from nnunetv2_conemos.evaluation.metrics import summarise, surface_scores
from nnunetv2_conemos.evaluation.plots import draw_dice
from nnunetv2_conemos.evaluation.scoring import CaseFiles, score_cases, score_maps
from nnunetv2_conemos.training.validation import ALL_LABELS, annotated_summary

CASE = CaseFiles("case", Path("gt"), Path("pred"))
ORGANS = {"background": 0, "liver": 1, "spleen": 2}
SOURCES = {
    "LiTS": {"cases": ["liver_*"], "annotated": ["liver"]},
    "BTCV": {"cases": ["btcv_*"], "annotated": ["liver", "spleen"]},
}


def scores_of(reference, prediction, labels=ORGANS, annotated=None, tolerance=None, spacing=(1.0, 1.0, 1.0)):
    """`score_maps` as a table indexed by label."""
    space = LabelSpace.from_dataset_json({"labels": labels})
    known = np.array([annotated is None or name in annotated for name in space.names])
    maps = reference.astype(np.uint16), prediction.astype(np.uint16)
    rows = score_maps(CASE, *maps, spacing, space, known, tolerance)
    return pd.DataFrame(rows).set_index("label")


def box(shape: Sequence[int], *edges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*edge) for edge in edges)] = True
    return mask


def write_map(file: Path, voxels: np.ndarray, spacing=(1.0, 1.0, 1.0), direction=None) -> None:
    """`spacing` in array order; files store it the other way round."""
    image = SimpleITK.GetImageFromArray(voxels)
    image.SetSpacing(spacing[::-1])
    if direction is not None:
        image.SetDirection(direction)
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(file))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases of two sources. liver_0: spleen is predicted, not annotated; btcv_1: spleen is predicted, absent."""
    liver, spleen = box((6, 8, 8), (1, 5), (1, 4), (1, 7)), box((6, 8, 8), (1, 5), (5, 7), (1, 7))
    both, empty = (liver + 2 * spleen).astype(np.uint8), np.zeros((6, 8, 8), np.uint8)
    maps = {
        "liver_0": (liver.astype(np.uint8), both),
        "btcv_0": (both, both),
        "btcv_1": (liver.astype(np.uint8), both),
        "btcv_2": (empty, 2 * spleen.astype(np.uint8)),
    }
    for case, (reference, prediction) in maps.items():
        write_map(tmp_path / "gt" / f"{case}.nii.gz", reference, (5.0, 1.0, 2.0))
        write_map(tmp_path / "pred" / f"{case}.nii.gz", prediction, (5.0, 1.0, 2.0))
    write_dataset_json(tmp_path / "pred" / "dataset.json")
    return tmp_path / "gt", tmp_path / "pred"


def write_dataset_json(
    file: Path, labels: Mapping = ORGANS, ending: str = ".nii.gz", sources: Mapping | None = SOURCES
):
    content = {"labels": labels, "file_ending": ending} | ({} if sources is None else {"sources": sources})
    file.write_text(json.dumps(content))


def evaluate_command(folders: tuple[Path, Path], *options: object) -> int:
    return main(["evaluate", *map(str, folders), "-np", "1", *map(str, options)])


def read_scores(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "evaluation.csv").set_index(["case", "label"])


def read_summary(folder: Path) -> dict:
    """The summary; fails on NaN, which is no JSON."""
    return json.loads((folder / "evaluation.json").read_text(), parse_constant=pytest.fail)


# -- measures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("axis", "millimetres"), [(0, 5.0), (1, 1.0), (2, 2.5)])
def test_distances_are_millimetres_along_the_axes_of_the_array(tmp_path, axis, millimetres):
    organ = box((8, 20, 12), (2, 5), (5, 15), (3, 9)).astype(np.uint8)
    write_map(tmp_path / "gt" / "a.nii.gz", organ, (5.0, 1.0, 2.5))
    write_map(tmp_path / "pred" / "a.nii.gz", np.roll(organ, 1, axis), (5.0, 1.0, 2.5))
    write_dataset_json(tmp_path / "pred" / "dataset.json", {"background": 0, "liver": 1})
    for tolerance, output in [(millimetres, tmp_path / "wide"), (millimetres - 0.1, tmp_path / "narrow")]:
        folders = tmp_path / "gt", tmp_path / "pred"
        assert evaluate_command(folders, "--complete", "--tolerance", tolerance, "-o", output) == 0
    wide, narrow = (read_scores(tmp_path / name).loc["a", "liver"] for name in ("wide", "narrow"))
    assert wide["hd95_mm"] == narrow["hd95_mm"] == millimetres
    assert wide["nsd"] == 1
    assert narrow["nsd"] < 0.95


def test_nsd_weighs_surface_by_its_area():
    """Shifted along the coarse axis, the two faces across it miss the tolerance; counting voxels gives 0.54."""
    spacing, sides = (5.0, 1.0, 1.0), (20, 40, 40)
    reference = box((30, 50, 50), *((5, 5 + side) for side in sides))
    millimetres = [side * step for side, step in zip(sides, spacing, strict=True)]
    across, along = 2 * millimetres[1] * millimetres[2], 4 * millimetres[0] * millimetres[1]
    nsd, hd95 = surface_scores(reference, np.roll(reference, 1, 0), spacing, tolerance=2.0)
    assert nsd == pytest.approx(along / (along + across), abs=0.01)
    assert hd95 == 5


def test_hd95_leaves_out_the_farthest_twentieth():
    """A spike of 10 mm on a cube of 602 surface voxels moves the maximum, not the 95th percentile."""
    reference = box((30, 12, 12), (1, 12), (1, 12), (1, 12))
    spiked = reference.copy()
    spiked[12:22, 6, 6] = True
    assert surface_scores(reference, spiked, (1.0, 1.0, 1.0), tolerance=1.0)[1] == 0


def test_dice_of_known_overlap():
    reference, prediction = box((4, 4, 4), (0, 2), (0, 4), (0, 4)), box((4, 4, 4), (1, 4), (0, 4), (0, 4))
    scores = scores_of(reference, prediction, {"background": 0, "liver": 1})
    assert scores.loc["liver", "dice"] == pytest.approx(2 * 16 / (32 + 48))


def test_a_single_slice_is_a_2d_image(tmp_path):
    """In 3D all voxels of a slice are surface: the interior would hide that half of the outline is off."""
    square = np.zeros((60, 60), np.uint8)
    square[10:50, 10:50] = 1
    for folder, image in [("gt", square), ("pred", np.roll(square, 3, 0))]:
        (tmp_path / folder).mkdir()
        io.imsave(tmp_path / folder / "a.png", image, check_contrast=False)
    write_dataset_json(tmp_path / "pred" / "dataset.json", {"background": 0, "cell": 1}, ".png", sources=None)
    folders = tmp_path / "gt", tmp_path / "pred"
    for _ in range(2):  # the second time, evaluation.png of the first lies among the label maps
        assert evaluate_command(folders, "-d", tmp_path / "pred", "--figure", "--overwrite", "--tolerance", 1) == 0
    scores = read_scores(tmp_path / "pred").loc["a", "cell"]
    assert scores["nsd"] == pytest.approx(0.5, abs=0.05)
    assert scores["hd95_mm"] == 3


@settings(max_examples=25, deadline=None)
@given(arrays(np.uint8, (5, 6, 7), elements=st.integers(0, 2)), arrays(np.uint8, (5, 6, 7), elements=st.integers(0, 2)))
def test_scores_do_not_depend_on_where_the_label_lies(reference, prediction):
    """Only the box around a label is looked at; the same maps in a wide margin score the same."""
    wide = [np.pad(voxels, 4) for voxels in (reference, prediction)]
    near = scores_of(reference, prediction, tolerance=1.0, spacing=(3.0, 1.0, 1.0))
    far = scores_of(*wide, tolerance=1.0, spacing=(3.0, 1.0, 1.0))
    pd.testing.assert_frame_equal(near, far)


# -- what counts ----------------------------------------------------------------------------------------------------


def test_every_annotated_pair_has_a_row_and_no_other(folders):
    assert evaluate_command(folders, "-d", folders[1]) == 0
    scores = read_scores(folders[1])
    status = {
        ("btcv_0", "liver"): "scored",
        ("btcv_0", "spleen"): "scored",
        ("btcv_1", "liver"): "scored",
        ("btcv_1", "spleen"): "reference empty",
        ("btcv_2", "liver"): "both empty",
        ("btcv_2", "spleen"): "reference empty",
        ("liver_0", "liver"): "scored",
    }
    assert scores["status"].to_dict() == status
    assert scores.loc[("liver_0", "liver"), "source"] == "LiTS"
    assert scores.loc[("btcv_1", "spleen"), ["dice", "nsd"]].tolist() == [0, 0]
    assert np.isnan(scores.loc[("btcv_1", "spleen"), "hd95_mm"])
    assert scores.loc[("btcv_2", "liver"), ["dice", "nsd", "hd95_mm"]].isna().all()


def test_summary_says_what_was_left_out_of_which_mean(folders):
    assert evaluate_command(folders, "-d", folders[1]) == 0
    summary = read_summary(folders[1])
    liver, spleen = summary["per_label"]["liver"], summary["per_label"]["spleen"]
    assert (liver["dice"], liver["scored"], liver["both empty"]) == (1, 3, 1)
    assert spleen["dice"] == pytest.approx(1 / 3)  # 1, 0, 0
    assert (spleen["hd95_mm"], spleen["scored"], spleen["hd95 undefined"]) == (0, 1, 2)
    assert summary["mean"]["dice"] == pytest.approx((1 + 1 / 3) / 2)
    assert summary["per_source"]["LiTS"]["per_label"]["spleen"]["dice"] is None
    assert summary["per_source"]["LiTS"]["mean"]["dice"] == 1
    assert (summary["cases"], summary["tolerance_mm"], summary["not_predicted"]) == (4, 2, [])


def test_labels_weigh_the_same_in_the_mean_however_often_they_are_annotated(folders):
    for folder in folders:
        (folder / "btcv_2.nii.gz").unlink()
    assert evaluate_command(folders, "-d", folders[1]) == 0
    assert read_summary(folders[1])["mean"]["dice"] == pytest.approx((3 / 3 + 1 / 2) / 2)


def test_a_missed_organ_scores_zero():
    organ = box((4, 4, 4), (1, 3), (1, 3), (1, 3)).astype(np.uint8)
    row = scores_of(organ, np.zeros_like(organ), annotated=["liver"], tolerance=2.0).loc["liver"]
    assert (row["dice"], row["nsd"], row["status"]) == (0, 0, "prediction empty")
    assert np.isnan(row["hd95_mm"])


def test_labels_that_nobody_annotated_have_a_row_without_value(folders):
    write_dataset_json(folders[1] / "dataset.json", {**ORGANS, "kidney": 3})
    assert evaluate_command(folders, "-d", folders[1]) == 0
    assert read_summary(folders[1])["per_label"]["kidney"]["dice"] is None


label_maps = arrays(np.uint8, (4, 5, 6), elements=st.integers(0, 2))


@settings(max_examples=50, deadline=None)
@given(label_maps, label_maps, arrays(bool, (4, 5, 6)), label_maps)
def test_ignored_voxels_change_nothing(reference, prediction, ignored, other):
    reference[ignored] = 3
    labels = {**ORGANS, "ignore": 3}
    before = scores_of(reference, prediction, labels)
    after = scores_of(reference, np.where(ignored, other, prediction), labels)
    pd.testing.assert_frame_equal(before, after)
    assert list(before.index) == ["liver", "spleen"]


@settings(max_examples=50, deadline=None)
@given(label_maps, label_maps, arrays(bool, (4, 5, 6)))
def test_predictions_of_labels_not_annotated_change_nothing(reference, prediction, changed):
    """A right spleen where only the liver was annotated costs nothing."""
    free = changed & (prediction != 1)
    before = scores_of(reference, prediction, annotated=["liver"])
    after = scores_of(reference, np.where(free, 2, prediction), annotated=["liver"])
    pd.testing.assert_frame_equal(before, after)


def test_regions_are_unions_of_values():
    labels = {"background": 0, "hippocampus": [1, 2], "posterior": 2, "ignore": 3}
    anterior, posterior = box((2, 4, 4), (0, 2), (0, 2), (0, 4)), box((2, 4, 4), (0, 2), (2, 4), (0, 4))
    whole, front = anterior + 2 * posterior, 1 * (anterior | posterior)
    scores = scores_of(whole, front, labels)
    assert scores.loc["hippocampus", "dice"] == 1
    assert scores.loc["posterior", "status"] == "prediction empty"
    assert list(scores_of(whole, front, labels, annotated=["hippocampus"]).index) == ["hippocampus"]


def test_a_glob_may_match_none_of_the_cases_evaluated():
    table = table_of_sources({"labels": ORGANS, "sources": SOURCES}, ["liver_7"])
    assert table.annotated("liver_7") == ("liver",)


def test_a_dataset_without_sources_is_annotated_for_everything(folders):
    write_dataset_json(folders[1] / "dataset.json", sources=None)
    assert evaluate_command(folders, "-d", folders[1] / "dataset.json") == 0
    assert len(read_scores(folders[1])) == 8


def test_complete_sets_the_sources_aside(folders):
    assert evaluate_command(folders, "--complete") == 0
    assert read_scores(folders[1]).loc[("liver_0", "spleen"), "dice"] == 0


def test_dataset_by_id(folders, nnunet_folders):
    raw = nnunet_folders / "nnUNet_raw" / "Dataset007_Organs"
    raw.mkdir()
    write_dataset_json(raw / "dataset.json")
    assert evaluate_command(folders, "-d", 7) == 0
    assert len(read_scores(folders[1])) == 7


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_annotated_table(folders, tmp_path, suffix):
    labels = {"liver_0": ["spleen"], "btcv_0": ["liver", "spleen"], "btcv_1": ["spleen", "liver"], "btcv_2": []}
    rows = "".join(f"{case},{';'.join(names)}\n" for case, names in labels.items())
    file = tmp_path / f"annotated{suffix}"
    file.write_text(json.dumps(labels) if suffix == ".json" else "case,labels\n" + rows)
    assert evaluate_command(folders, "--annotated", file) == 0
    scores = read_scores(folders[1])
    assert {case: len(rows) for case, rows in scores.groupby("case")} == {"liver_0": 1, "btcv_0": 2, "btcv_1": 2}
    assert scores.loc[("liver_0", "spleen"), "source"] == "spleen"
    assert scores.loc[("btcv_0", "liver"), "source"] == scores.loc[("btcv_1", "liver"), "source"]


def test_cases_without_prediction_are_left_out_only_with_chill(folders, capsys):
    (folders[1] / "btcv_1.nii.gz").unlink()
    assert evaluate_command(folders, "-d", folders[1]) == 2
    assert "btcv_1" in (message := capsys.readouterr().err)
    assert "--chill" in message
    assert evaluate_command(folders, "-d", folders[1], "--chill") == 0
    assert read_summary(folders[1])["not_predicted"] == ["btcv_1"]
    assert "btcv_1" in capsys.readouterr().out


# -- nnU-Net's summary of a validation ------------------------------------------------------------------------------


@pytest.fixture
def nnunet_summary(folders, monkeypatch):
    """Writes nnU-Net's summary.json as its final validation does; returns the file and its content."""

    def write(regions_or_labels: list) -> tuple[Path, dict]:
        with monkeypatch.context() as patch:
            pools_of_threads(patch)
            gt, pred = map(str, folders)
            file = str(folders[1] / "summary.json")
            compute_metrics_on_folder(gt, pred, file, SimpleITKIO(), ".nii.gz", regions_or_labels, num_processes=1)
        return Path(file), load_summary_json(file)

    return write


def table_of(folders, labels: Mapping = ORGANS, sources: Mapping | None = SOURCES):
    dataset_json = {"labels": labels} | ({} if sources is None else {"sources": sources})
    return table_of_sources(dataset_json, [file.name.removesuffix(".nii.gz") for file in folders[0].iterdir()])


def test_summary_of_a_fully_annotated_dataset_stays_as_it_is(folders, nnunet_summary):
    file, theirs = nnunet_summary([1, 2])
    ours = annotated_summary(file, table_of(folders, sources=None), ".nii.gz")
    assert load_summary_json(str(file)) == ours
    for part in ("mean", "foreground_mean", "metric_per_case"):
        np.testing.assert_equal(ours[part], theirs[part])


def test_summary_keeps_annotated_pairs_only(folders, nnunet_summary):
    for _ in range(2):  # validated a second time, nnU-Net writes a fresh file
        file, theirs = nnunet_summary([1, 2])
        ours = annotated_summary(file, table_of(folders), ".nii.gz")
        per_case = {Path(entry["prediction_file"]).name: set(entry["metrics"]) for entry in ours["metric_per_case"]}
        assert per_case.pop("liver_0.nii.gz") == {1}
        assert set(map(frozenset, per_case.values())) == {frozenset({1, 2})}
        assert theirs["mean"][2]["Dice"] == pytest.approx(1 / 4)  # the spleen of liver_0 counted as wrong
        assert ours["mean"][2]["Dice"] == pytest.approx(1 / 3)
        assert ours["foreground_mean"]["Dice"] == pytest.approx((1 + 1 / 3) / 2)
        np.testing.assert_equal(load_summary_json(str(folders[1] / ALL_LABELS)), theirs)


def test_summary_in_region_mode(folders, nnunet_summary):
    labels = {"background": 0, "organs": [1, 2], "spleen": 2}
    sources = {**SOURCES, "LiTS": {"cases": ["liver_*"], "annotated": ["organs"]}}
    sources["BTCV"] = {"cases": ["btcv_*"], "annotated": ["organs", "spleen"]}
    file, _ = nnunet_summary([(1, 2), 2])
    ours = annotated_summary(file, table_of(folders, labels, sources), ".nii.gz")
    per_case = {Path(entry["prediction_file"]).name: set(entry["metrics"]) for entry in ours["metric_per_case"]}
    assert per_case["liver_0.nii.gz"] == {(1, 2)}
    assert per_case["btcv_0.nii.gz"] == {(1, 2), 2}


# -- output ---------------------------------------------------------------------------------------------------------


def test_results_of_an_earlier_evaluation_are_kept(folders, capsys):
    (folders[1] / "evaluation.csv").write_text("precious")
    assert evaluate_command(folders, "--complete") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (folders[1] / "evaluation.csv").read_text() == "precious"
    assert evaluate_command(folders, "--complete", "--overwrite") == 0
    assert len(read_scores(folders[1])) == 8


def test_figure_and_folder(folders, tmp_path):
    assert evaluate_command(folders, "-d", folders[1], "--figure", "-o", tmp_path / "new" / "place") == 0
    files = sorted(file.name for file in (tmp_path / "new" / "place").iterdir())
    assert files == ["evaluation.csv", "evaluation.json", "evaluation.png"]
    assert np.ptp(io.imread(tmp_path / "new" / "place" / "evaluation.png")[..., :3]) > 0
    assert not list(folders[1].glob("evaluation*"))


@pytest.mark.parametrize("sources", [0, 1, 12])
def test_figure_of_any_number_of_sources(tmp_path, sources):
    rows = [{"case": f"{i}", "source": f"source {i}", "label": "liver", "dice": 0.5} for i in range(sources)]
    scores = pd.DataFrame(rows, columns=["case", "source", "label", "dice"]).astype({"dice": float})
    draw_dice(scores, ["liver", "spleen"], tmp_path / "figure.png")
    height, width = io.imread(tmp_path / "figure.png").shape[:2]
    assert width < 3 * height


def test_printed_table_has_a_line_per_source_and_label(folders, capsys):
    assert evaluate_command(folders, "-d", folders[1]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    btcv, lits, every = (lines.index(heading) for heading in (["BTCV"], ["LiTS"], ["all", "sources"]))
    assert lines[btcv + 2] == ["spleen", "0.333", "0.333", "0.000", "3", "2", "0"]
    assert lines[lits + 1] == ["liver", "1.000", "1.000", "0.000", "1", "0", "0"]
    assert lines[every + 1] == ["liver", "1.000", "1.000", "0.000", "4", "0", "1"]
    assert ["mean", "over", "labels", "0.667", "0.667", "0.000"] in lines


def test_processes_give_what_one_gives(folders, monkeypatch):
    forked = multiprocessing.get_context("fork")  # a spawned process imports torch for seconds
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: forked)
    dataset_json = json.loads((folders[1] / "dataset.json").read_text())
    table = table_of_sources(dataset_json, ["btcv_0", "btcv_1", "liver_0"])
    files = [CaseFiles(case, *(folder / f"{case}.nii.gz" for folder in folders)) for case in table.cases]
    alone, together = (score_cases(files, table, dataset_json, None, processes) for processes in (1, 2))
    pd.testing.assert_frame_equal(alone, together)
    assert summarise(alone, table.labels.names)["dice"].tolist() == [1.0, 0.5]


# -- bad input ------------------------------------------------------------------------------------------------------


def refused(capsys, folders, *options: object) -> str:
    """The message of an evaluation that must fail without writing anything."""
    assert evaluate_command(folders, *options) == 2
    assert not list(folders[1].glob("evaluation*"))
    return capsys.readouterr().err


def test_exactly_one_way_to_say_what_counts(folders):
    for options in ([], ["--complete", "-d", "7"]):
        with pytest.raises(SystemExit):
            evaluate_command(folders, *options)
    for more in ({}, {"complete": True, "dataset": "7"}):
        with pytest.raises(ValueError, match="exactly one of `dataset`, `annotated` and `complete`"):
            evaluate(*folders, **more)


def test_in_python_the_table_may_be_a_mapping_and_the_result_is_what_is_written(folders, tmp_path, capsys):
    annotated = {"liver_0": ["spleen"], "btcv_0": ["liver"], "btcv_1": [], "btcv_2": []}
    found = evaluate(*folders, annotated=annotated, output=tmp_path / "out", tolerance=1.0, processes=1)
    assert found.scores["label"].tolist() == ["liver", "spleen"]
    assert found.summary == read_summary(tmp_path / "out")
    assert found.files == (tmp_path / "out/evaluation.csv", tmp_path / "out/evaluation.json")
    assert (found.labels, found.tolerance, found.not_predicted) == (("liver", "spleen"), 1.0, ())
    with pytest.raises(
        SourceError, match=r"\(case -> labels\): expected every case to evaluate, found no entry for btcv_1"
    ):
        evaluate(*folders, annotated={"liver_0": [], "btcv_0": [], "btcv_2": []}, output=tmp_path / "other")


def test_a_case_in_no_source_names_the_other_options(folders, capsys):
    write_dataset_json(folders[1] / "dataset.json", sources={"BTCV": SOURCES["BTCV"]})
    message = refused(capsys, folders, "-d", folders[1])
    assert all(part in message for part in ("liver_0", "--annotated", "--complete"))


def test_a_case_that_the_table_does_not_name(folders, capsys, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"liver_0": ["liver"], "btcv_0": [], "btcv_2": []}))
    assert "btcv_1" in refused(capsys, folders, "--annotated", tmp_path / "a.json")


def test_an_unknown_label_names_the_nearest(folders, capsys, tmp_path):
    table = {case: ["livr"] for case in ("liver_0", "btcv_0", "btcv_1", "btcv_2")}
    (tmp_path / "a.json").write_text(json.dumps(table))
    assert "Did you mean 'liver'" in refused(capsys, folders, "--annotated", tmp_path / "a.json")


def test_nothing_annotated(folders, capsys):
    sources = {**SOURCES, "BTCV": {"cases": ["btcv_*"], "annotated": []}}
    write_dataset_json(folders[1] / "dataset.json", sources=sources)
    for folder in folders:
        (folder / "liver_0.nii.gz").unlink()
    assert "none of the 3 cases" in refused(capsys, folders, "-d", folders[1])


def test_no_dataset_json(folders, capsys, tmp_path, nnunet_folders):
    (folders[1] / "dataset.json").rename(tmp_path / "elsewhere.json")
    assert "-djfile" in refused(capsys, folders, "--complete")
    assert "Dataset999_Nowhere" in refused(capsys, folders, "-d", "Dataset999_Nowhere")
    assert "999" in refused(capsys, folders, "-d", "999")
    assert "-djfile" in refused(capsys, folders, "-d", tmp_path / "elsewhere.json", "-djfile", tmp_path / "x.json")
    assert evaluate_command(folders, "--complete", "-djfile", tmp_path / "elsewhere.json") == 0


def test_a_prediction_without_ground_truth(folders, capsys):
    (folders[0] / "btcv_1.nii.gz").unlink()
    assert "btcv_1" in refused(capsys, folders, "-d", folders[1], "--chill")


def test_an_empty_folder(folders, capsys, tmp_path):
    message = refused(capsys, (tmp_path / "nowhere", folders[1]), "-d", folders[1])
    assert "nowhere" in message
    assert ".nii.gz" in message


FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("shape", "spacing", "direction", "expected", "found"),
    [
        ((6, 8, 9), (5.0, 1.0, 2.0), None, "(8, 8, 6)", "(9, 8, 6)"),
        ((6, 8, 8), (2.0, 1.0, 5.0), None, "(5, 1, 2)", "(2, 1, 5)"),
        ((6, 8, 8), (5.0, 1.0, 2.0), FLIPPED, "direction", "(1, 0, 0"),
    ],
)
def test_a_prediction_on_another_grid(folders, capsys, shape, spacing, direction, expected, found):
    write_map(folders[1] / "btcv_1.nii.gz", np.zeros(shape, np.uint8), spacing, direction)
    message = refused(capsys, folders, "-d", folders[1])
    assert all(part in message for part in ("btcv_1", expected, found, "resample"))


@pytest.mark.parametrize(("value", "found"), [(7, "7"), (0.5, "0.5"), (-1, "-1")])
def test_values_that_are_no_label(folders, capsys, value, found):
    voxels = np.zeros((6, 8, 8), np.float32)
    voxels[0, 0, 0] = value
    write_map(folders[1] / "btcv_1.nii.gz", voxels, (5.0, 1.0, 2.0))
    message = refused(capsys, folders, "-d", folders[1])
    assert "btcv_1" in message
    assert found in message


def test_a_file_that_is_no_image(folders, capsys):
    (folders[1] / "btcv_1.nii.gz").write_text("no image")
    assert "btcv_1.nii.gz is damaged" in refused(capsys, folders, "-d", folders[1])


def test_the_dice_of_slices_counts_those_that_show_the_label(folders):
    reference, prediction = np.zeros((2, 6, 8, 8), np.uint8)
    reference[1:4, 1:5, 1:5] = prediction[2:6, 1:5, 1:3] = 1  # a slice missed, two half found, two found in vain
    space = LabelSpace.from_dataset_json({"labels": ORGANS})

    def rows_of(predicted: np.ndarray, spleen: bool, axis: Axis) -> list[dict]:
        maps = reference.astype(np.uint16), predicted.astype(np.uint16)
        return score_maps(CASE, *maps, (1.0, 1.0, 1.0), space, np.array([True, spleen]), None, axis)

    rows = rows_of(prediction, True, "z")
    assert (rows[0]["slice_dice"], rows[0]["slices"]) == (pytest.approx((0 + 2 / 3 + 2 / 3) / 3), 3)
    assert np.isnan(rows[1]["slice_dice"])
    assert rows[1]["slices"] == 0
    along_x = rows_of(prediction, False, "x")[0]
    assert (along_x["slice_dice"], along_x["slices"]) == (pytest.approx(2 * (2 * 8 / (12 + 16)) / 4), 4)
    assert rows_of(0 * prediction, False, "z")[0]["slice_dice"] == 0
    assert evaluate_command(folders, "--complete", "--slices", "z") == 0
    scores, summary = read_scores(folders[1]), json.loads((folders[1] / "evaluation.json").read_text())
    assert scores["slice_dice"]["btcv_0", "liver"] == 1
    liver = scores["slice_dice"].xs("liver", level="label").mean()
    assert summary["per_label"]["liver"]["slice_dice"] == pytest.approx(liver)
