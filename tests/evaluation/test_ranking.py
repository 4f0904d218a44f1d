"""`conemos best`: ranks on annotated pairs, says how to predict with the winner, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from pools import pools_of_threads

from nnunetv2_conemos.cli import main

DATASET = "Dataset005_Organs"
SHAPE = (4, 10, 10)
PROPERTIES = {"sitk_stuff": {"spacing": (1.0, 1.0, 2.0), "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())}}
FOLDS = {0: ["liver_0", "spleen_0"], 1: ["liver_1", "spleen_1"]}
SPLEEN_NAME = "spleen, left; 2"  # a name may hold what separates fields of a table
DATASET_JSON = {
    "labels": {"background": 0, "liver": 1, SPLEEN_NAME: 2},
    "file_ending": ".nii.gz",
    "sources": {
        "livers": {"cases": ["liver_*"], "annotated": ["liver"]},
        "spleens": {"cases": ["spleen_*"], "annotated": [SPLEEN_NAME]},
    },
}
LIVER, SPLEEN = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
LIVER[:, :4], SPLEEN[:, 6:] = True, True

Predict = Callable[[str], np.ndarray]  # case -> label map


def everything(case: str) -> np.ndarray:
    """Both organs, right in every case."""
    return (LIVER + 2 * SPLEEN).astype(np.uint8)


def annotated_only(case: str) -> np.ndarray:
    """The organ that was annotated in this case, a quarter of it missing, and nothing else."""
    prediction = everything(case) * (LIVER if case.startswith("liver") else SPLEEN)
    prediction[0] = 0
    return prediction


def liver_only(case: str) -> np.ndarray:
    return LIVER.astype(np.uint8)


def spleen_only(case: str) -> np.ndarray:
    return 2 * SPLEEN.astype(np.uint8)


def write_map(file: Path, voxels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    SimpleITKIO().write_seg(voxels, str(file), PROPERTIES)


@pytest.fixture
def results(nnunet_folders: Path) -> Path:
    """Results folder of a dataset whose cases show both organs and are annotated for one."""
    for folder, maps in [("nnUNet_raw", "labelsTr"), ("nnUNet_preprocessed", "gt_segmentations")]:
        dataset = nnunet_folders / folder / DATASET
        for case in chain(*FOLDS.values()):
            organ = LIVER if case.startswith("liver") else SPLEEN
            write_map(dataset / maps / f"{case}.nii.gz", everything(case) * organ)
        (dataset / "dataset.json").write_text(json.dumps(DATASET_JSON))
        (dataset / "nnUNetPlans.json").write_text(json.dumps(PLANS))
    return nnunet_folders / "nnUNet_results" / DATASET


PLANS = {
    "dataset_name": DATASET,
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "configurations": {name: {"architecture": {}} for name in ("2d", "3d_fullres")},
}


def train(results: Path, name: str, predict: Predict, folds=(0, 1), certainty: float | None = None) -> Path:
    """A model folder as nnU-Net leaves it; with `certainty` of what it finds, probabilities beside the maps."""
    model = results / name
    for fold in folds:
        for case in FOLDS[fold]:
            truncated = model / f"fold_{fold}" / "validation" / case
            write_map(truncated.with_name(f"{case}.nii.gz"), predict(case))
            if certainty is not None:
                probabilities = (1 - certainty) / 2 * np.ones((3, *SHAPE), np.float32)
                np.put_along_axis(probabilities, predict(case)[None].astype(int), certainty, 0)
                probabilities[0][predict(case) == 0] = 0.4  # not certain that nothing is there
                np.savez(truncated.with_name(f"{case}.npz"), probabilities=probabilities)
                save_pickle(PROPERTIES, str(truncated.with_name(f"{case}.pkl")))
        (model / f"fold_{fold}" / "validation" / "summary.json").write_text("{}")
        (model / f"fold_{fold}" / "checkpoint_final.pth").touch()
    (model / "dataset.json").write_text(json.dumps(DATASET_JSON))
    (model / "plans.json").write_text(json.dumps(PLANS))
    return model


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pools_of_threads(monkeypatch)


def best(*options: str) -> int:
    return main(["best", DATASET, "-np", "1", *options])


def read_result(results: Path) -> dict:
    return json.loads((results / "conemos_best.json").read_text(), parse_constant=pytest.fail)


FILM, STOCK = "ConditionalFiLMTrainer__nnUNetPlans__3d_fullres", "nnUNetTrainer__nnUNetPlans__3d_fullres"


def trainers_ranked(results: Path) -> list[str]:
    return [" + ".join(model["trainer"] for model in entry["models"]) for entry in read_result(results)["ranking"]]


def test_find_best_configuration_takes_the_worse_network_and_we_do_not(results, threads):
    """nnU-Net wants an organ absent where it was not annotated, so it prefers the network that finds less."""
    train(results, FILM, everything)
    train(results, STOCK, annotated_only)
    models = [
        {"trainer": name.split("__")[0], "plans": "nnUNetPlans", "configuration": "3d_fullres"}
        for name in (FILM, STOCK)
    ]
    theirs = find_best_configuration(DATASET, models, allow_ensembling=False, num_processes=1, folds=(0, 1))
    three_quarters = 2 * 0.75 / 1.75  # Dice of three quarters of an organ
    assert theirs["all_results"] == pytest.approx({FILM: 0.5, STOCK: three_quarters})
    assert theirs["best_model_or_ensemble"]["selected_model_or_models"][0]["trainer"] == "nnUNetTrainer"
    assert best("--disable_ensembling") == 0
    assert trainers_ranked(results) == ["ConditionalFiLMTrainer", "nnUNetTrainer"]
    assert [entry["dice"] for entry in read_result(results)["ranking"]] == pytest.approx([1, three_quarters])


def test_command_of_a_single_winner(results, capsys):
    train(results, FILM, everything)
    train(results, "nnUNetTrainer__nnUNetPlans__2d", liver_only)
    assert best("--disable_ensembling") == 0
    command = (
        f"nnUNetv2_predict -d {DATASET} -i INPUT_FOLDER -o OUTPUT_FOLDER -f 0 1 "
        "-tr ConditionalFiLMTrainer -c 3d_fullres -p nnUNetPlans"
    )
    result = read_result(results)
    assert result["commands"] == [command]
    assert (result["folds"], result["not_ranked"]) == ([0, 1], {})
    assert result["ranking"][1]["models"][0]["configuration"] == "2d"
    assert result["ranking"][1]["per_label"] == {"liver": 1, SPLEEN_NAME: 0}
    assert result["ranking"][1]["dice"] == 0.5
    assert command in " ".join(capsys.readouterr().out.split())


def test_a_label_that_nobody_annotates_is_in_no_mean(results):
    train(results, FILM, everything)
    for file in results.parents[1].rglob("dataset.json"):
        file.write_text(json.dumps({**DATASET_JSON, "labels": {**DATASET_JSON["labels"], "kidney": 3}}))
    assert best() == 0
    entry = read_result(results)["ranking"][0]
    assert (entry["dice"], entry["per_label"]) == (1, {"liver": 1, SPLEEN_NAME: 1, "kidney": None})


def test_an_ensemble_can_win(results, threads):
    """Each member misses an organ without being certain of it; their mean finds both."""
    train(results, "LiverTrainer__nnUNetPlans__3d_fullres", liver_only, certainty=0.9)
    train(results, "SpleenTrainer__nnUNetPlans__2d", spleen_only, certainty=0.9)
    assert best() == 0
    assert trainers_ranked(results) == ["LiverTrainer + SpleenTrainer", "LiverTrainer", "SpleenTrainer"]
    result = read_result(results)
    assert [entry["dice"] for entry in result["ranking"]] == [1, 0.5, 0.5]
    predict = f"nnUNetv2_predict -d {DATASET} -i INPUT_FOLDER -o OUTPUT_FOLDER_MODEL_{{}} -f 0 1"
    assert result["commands"] == [
        predict.format(1) + " -tr LiverTrainer -c 3d_fullres -p nnUNetPlans --save_probabilities",
        predict.format(2) + " -tr SpleenTrainer -c 2d -p nnUNetPlans --save_probabilities",
        "nnUNetv2_ensemble -i OUTPUT_FOLDER_MODEL_1 OUTPUT_FOLDER_MODEL_2 -o OUTPUT_FOLDER",
    ]


def test_missing_probabilities_name_the_command_and_the_rest_is_ranked(results, capsys):
    train(results, FILM, everything, certainty=0.9)
    train(results, STOCK, annotated_only, certainty=0.9)
    (results / STOCK / "fold_1" / "validation" / "liver_1.npz").unlink()
    assert best() == 0
    command = f"nnUNetv2_train {DATASET} 3d_fullres 1 -tr nnUNetTrainer -p nnUNetPlans --val --npz"
    assert read_result(results)["not_ranked"] == {f"{FILM} + {STOCK}": [command]}
    assert trainers_ranked(results) == ["ConditionalFiLMTrainer", "nnUNetTrainer"]
    assert command in " ".join(capsys.readouterr().out.split())


def test_folds_and_models_asked_for(results):
    train(results, FILM, everything)
    train(results, STOCK, annotated_only, folds=(0,))
    train(results, "nnUNetTrainer__nnUNetPlans__2d", annotated_only, folds=(0,))
    assert best("--disable_ensembling", "-f", "0", "-c", "3d_fullres") == 0
    assert trainers_ranked(results) == ["ConditionalFiLMTrainer", "nnUNetTrainer"]
    assert best("--disable_ensembling", "-tr", "nnUNetTrainer") == 0
    assert (trainers_ranked(results), read_result(results)["folds"]) == (["nnUNetTrainer"] * 2, [0])


def refused(capsys, results: Path, *options: str) -> str:
    """The message of a ranking that must fail without a result."""
    assert best(*options) == 2
    assert not (results / "conemos_best.json").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("checkpoint", "remedy"),
    [
        ("checkpoint_final.pth", "--val --npz"),
        ("checkpoint_latest.pth", "--c --npz"),
        ("checkpoint_best.pth", "--c --npz"),
        (None, "nnUNetPlans --npz"),
    ],
)
def test_a_fold_without_validation_names_the_command(results, capsys, checkpoint, remedy):
    train(results, FILM, everything)
    (train(results, STOCK, annotated_only) / "fold_1" / "validation" / "summary.json").unlink()  # it was interrupted
    (results / STOCK / "fold_1" / "checkpoint_final.pth").unlink()
    if checkpoint:
        (results / STOCK / "fold_1" / checkpoint).touch()
    message = refused(capsys, results)
    assert f"{STOCK}, fold 1" in message
    assert f"nnUNetv2_train {DATASET} 3d_fullres 1 -tr nnUNetTrainer -p nnUNetPlans" in message
    assert remedy in message


def test_a_fold_that_one_model_never_had(results, capsys):
    train(results, FILM, everything)
    train(results, STOCK, annotated_only, folds=(0,))
    assert f"{STOCK}, fold 1" in refused(capsys, results)


def test_different_cases_are_not_compared(results, capsys):
    train(results, FILM, everything)
    (train(results, STOCK, annotated_only) / "fold_1" / "validation" / "spleen_1.nii.gz").unlink()
    message = refused(capsys, results)
    assert STOCK in message
    assert "spleen_1" in message


def test_a_case_in_two_folds(results, capsys):
    model = train(results, FILM, everything)
    write_map(model / "fold_1" / "validation" / "liver_0.nii.gz", everything("liver_0"))
    assert "liver_0" in refused(capsys, results)


def test_a_model_of_other_labels(results, capsys):
    model = train(results, FILM, everything)
    (model / "dataset.json").write_text(json.dumps({**DATASET_JSON, "labels": {"background": 0, "tumour": 1}}))
    message = refused(capsys, results)
    assert "tumour" in message
    assert SPLEEN_NAME in message


def test_a_fold_of_other_labels(results, capsys):
    """Stock nnU-Net replaces the dataset.json that the folds share when it trains the next."""
    model = train(results, STOCK, everything)
    noted = {**DATASET_JSON, "labels": {"background": 0, SPLEEN_NAME: 1, "liver": 2}}
    (model / "fold_1" / "debug.json").write_text(json.dumps({"dataset_json": str(noted)}))
    message = refused(capsys, results)
    assert f"{STOCK}, fold 1: expected the labels of" in message
    assert json.dumps(noted["labels"]) in message
    assert best("-f", "0", "--disable_ensembling") == 0


def test_a_trainer_that_was_not_trained(results, capsys):
    train(results, FILM, everything)
    message = refused(capsys, results, "-tr", "ConditionalTrainer")
    assert "ConditionalTrainer" in message
    assert "ConditionalFiLMTrainer" in message


def test_nothing_trained(results, capsys, monkeypatch):
    assert "found none" in refused(capsys, results)
    (results / FILM).mkdir(parents=True)
    (results / FILM / "plans.json").write_text("{}")
    (results / FILM / "dataset.json").write_text(json.dumps(DATASET_JSON))
    assert f"nnUNetv2_train {DATASET} 3d_fullres 0" in refused(capsys, results)
    monkeypatch.delenv("nnUNet_results")
    assert "nnUNet_results is not set" in refused(capsys, results)
