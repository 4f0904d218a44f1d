"""What each kind of arm trains on, and how it gets its predictions; training itself is replaced."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks import StandIn
from raw_worlds import read_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.benchmark.arms import joined
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.files import write_json


def test_unlabelled_cases_are_left_out_where_only_annotated_ones_are_wanted(stand_in: StandIn):
    content = read_dataset_json(stand_in.raw)
    content["sources"]["site_c"]["annotated"] = []
    write_json(stand_in.raw / "dataset.json", content)
    arms = ("UniMOSTrainer", "annotated-only", "annotated-only:UniMOSTrainer")
    stand_in.benchmark(*arms, folds=("all",))
    trainers = [trainer.partition("_")[0] for trainer, _ in stand_in.trained]
    assert list(zip(trainers, stand_in.trained_on, strict=True)) == [
        ("UniMOSTrainer", "900_Partial"), ("nnUNetTrainer", "903_Annotated"), ("UniMOSTrainer", "903_Annotated"),
    ]  # fmt: skip
    left = read_dataset_json(stand_in.bench / "nnUNet_raw/Dataset903_Annotated")
    assert not any(case.startswith("site_c") for case in left["dataset"])
    assert set(left["sources"]) == set(content["sources"]) - {"site_c"}
    stand_in.done = []
    stand_in.benchmark(*arms, folds=("all",))
    assert not stand_in.done, "recognised as done"
    stand_in.benchmark(arms[0], folds=("all", 0))
    assert list(stand_in.runs["fold"]) == ["all"] * 3 + ["0"]


def test_without_unlabelled_cases_there_is_nothing_to_leave_out(stand_in: StandIn):
    result = stand_in.benchmark("vanilla", "annotated-only")
    assert [run.arm.name for run in result.failed] == ["annotated-only"]
    assert "every training case is annotated for something" in stand_in.runs["status"]["annotated-only", 0]


def test_tags_go_with_their_cases_and_stay_away_from_networks_that_do_not_learn_from_them(stand_in: StandIn):
    content = read_dataset_json(stand_in.raw)
    names = [name for name in content["labels"] if name != "background"]
    content["sources"]["site_c"] |= {"annotated": [], "tagged": names}
    every = {"every": {"cases": ["*"], "annotated": names}}
    write_json(stand_in.raw / "dataset.json", content | {"sources": every})
    assert cli.main(["hide", "901", "-o", "Dataset902_Tagged", "--per-case", "1", "--tags", "z", "-np", "1"]) == 0
    file = stand_in.raw.parent / "Dataset902_Tagged/dataset.json"
    tagged = json.loads(file.read_text())
    gold = next(c for c in tagged["tags"]["cases"] if read_nifti(file.parent / f"labelsTr/{c}.nii.gz").any())
    source = next(name for name, entry in tagged["sources"].items() if gold in entry["cases"])
    tagged["sources"][source]["cases"].remove(gold)
    tagged["sources"]["gold"] = {"cases": [gold], "annotated": names}
    del tagged["tags"]["cases"][gold]
    write_json(file, tagged)
    stand_in.benchmark("ConditionalFiLMTrainer", "per-label", dataset="902", hold_out=1, folds=("all",))
    partial = read_dataset_json(stand_in.bench / "nnUNet_raw/Dataset900_Partial")
    assert partial["tags"]["cases"] == tagged["tags"]["cases"]
    assert gold not in partial["dataset"]
    assert not {"tags", "sources"} & set(read_dataset_json(stand_in.bench / "nnUNet_raw/Dataset101_Only_1"))


def test_a_recipe_turns_hidden_labels_into_tags(stand_in: StandIn):
    content = read_dataset_json(stand_in.raw)
    write_json(stand_in.raw / "dataset.json", {key: content[key] for key in content if key != "sources"})
    arms = ("CMERTrainer", "ceiling:ConditionalFiLMTrainer", "annotated-only:ConditionalFiLMTrainer")
    stand_in.benchmark(*arms, folds=("all",), hide={"per_case": 1, "unlabelled": 0.5, "tags": "z"})
    partial = read_dataset_json(stand_in.bench / "nnUNet_raw/Dataset900_Partial")
    assert set(partial["tags"]["cases"]) == set(partial["dataset"])
    for name in ("Dataset901_Complete", "Dataset903_Annotated"):
        other = read_dataset_json(stand_in.bench / "nnUNet_raw" / name)
        assert "tags" not in other
        assert not any("tagged" in source for source in other["sources"].values())


def test_labels_of_one_network_each_are_trained_on_their_own_cases(stand_in: StandIn):
    stand_in.benchmark("per-label")
    raw, preprocessed = (stand_in.bench / name for name in ("nnUNet_raw", "nnUNet_preprocessed"))
    only = read_dataset_json(raw / "Dataset101_Only_1")
    assert only["labels"] == {"background": 0, "liver": 1}
    assert sorted(only["dataset"]) == ["site_a_00", "site_a_01", "site_a_02"]
    second = read_nifti(raw / "Dataset102_Only_2/labelsTr/site_b_00.nii.gz")
    assert np.array_equal(second, read_nifti(stand_in.raw / "labelsTr/site_b_00.nii.gz") == 2)
    splits = json.loads((preprocessed / "Dataset101_Only_1/splits_final.json").read_text())
    assert set(splits[0]["train"] + splits[0]["val"]) == set(only["dataset"])
    third = json.loads((preprocessed / "Dataset103_Only_3/splits_final.json").read_text())
    assert all(fold["val"] for fold in third), "also where no case of the label validates"


def test_the_teacher_and_an_arm_of_the_same_trainer_with_other_plans_are_two_trainings(stand_in: StandIn):
    name = "ConditionalFiLMTrainer"
    stand_in.benchmark("completed", {"arm": name, "name": name, "configuration": "2d"})
    ours = [configuration for trainer, configuration in stand_in.trained if trainer.startswith(name)]
    assert sorted(ours) == ["2d", "3d_fullres"]


def test_an_arm_may_predict_with_the_network_of_another(stand_in: StandIn):
    """Same weights, other options of the method at prediction."""
    configurations = {"small": {"base": "2d"}, "singly": {"base": "small", "conemos": {"one_by_one": True}}}
    arms = ({"arm": "LabelSetFiLMTrainer", "prediction": "singly"}, "LabelSetFiLMTrainer")
    stand_in.benchmark(*arms, configuration="small", configurations=configurations)
    assert [name for name, _ in stand_in.trained] == ["LabelSetFiLMTrainer_1epoch"], "once"
    inner = "nnUNet_results/Dataset900_Partial/LabelSetFiLMTrainer_1epoch__nnUNetPlans__small"
    whole, singly = (
        stand_in.bench / "runs" / f"LabelSetFiLMTrainer{more}__1epochs__seed0__fold0" / inner
        for more in ("", "_singly")
    )
    assert (singly / "fold_0").resolve() == whole / "fold_0"
    small = [json.loads((folder / "plans.json").read_text())["configurations"]["small"] for folder in (whole, singly)]
    assert small[1].pop("conemos") == {"one_by_one": True}
    assert small[0] == small[1]
    assert set(stand_in.runs.index) == {("LabelSetFiLMTrainer singly", 0), ("LabelSetFiLMTrainer", 0)}


def test_an_arm_may_have_another_optimiser(stand_in: StandIn):
    stand_in.benchmark("vanilla", {"arm": "vanilla", "optimiser": "SGD"}, optimiser="AdamW")
    assert [name for name, _ in stand_in.trained] == ["nnUNetTrainerAdam1en3_1epoch", "nnUNetTrainer_1epoch"]
    for name in ("report.md", "report.html"):
        assert "of AdamW (vanilla SGD: SGD), plans" in (stand_in.bench / name).read_text()


@pytest.mark.parametrize(("overlap", "expected"), [(False, [2, 1, 0, 0]), (True, [2, 2, 0, 0])])
def test_the_likeliest_label_above_one_half_wins_and_regions_lie_one_over_the_other(overlap, expected):
    maps = [np.array([0.6, 0.9, 0.2, 0.5]), np.array([0.7, 0.8, 0.4, 0.5])]
    assert joined(iter(maps), [1, 2], overlap=overlap).tolist() == expected
