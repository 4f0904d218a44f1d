"""A network that is conditioned on the modality predicts the held-out cases of each modality by themselves."""

import json
from pathlib import Path

import pytest

from nnunetv2_conemos.benchmark import networks
from nnunetv2_conemos.benchmark.config import Arm, Recipe, Run
from nnunetv2_conemos.benchmark.networks import Network
from nnunetv2_conemos.benchmark.runner import Runner
from nnunetv2_conemos.networks.spec import PLANS_KEY


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "test" / "imagesTr"
    folder.mkdir(parents=True)
    for case in ("c1", "c2", "m1", "x1"):
        for channel in range(2):
            (folder / f"{case}_000{channel}.nii.gz").touch()
    declared = {"c1": "CT", "c2": "CT", "m1": "MR/T1", "x1": None}
    (folder.parent / "modalities.json").write_text(json.dumps(declared))
    return folder


def trained(tmp_path: Path, facts: dict | None) -> Network:
    """A trained network whose plans hold these facts."""
    run, recipe = Run(Arm(arm="HermesTrainer"), 1, 0, 0), Recipe(dataset="1", tta=False)
    network = Network(run, recipe, "Dataset900_Partial", "HermesTrainer", tmp_path / "results", tmp_path, "2d")
    network.folder.mkdir(parents=True)
    plans = {} if facts is None else {PLANS_KEY: facts}
    (network.folder / "plans.json").write_text(json.dumps(plans))
    return network


def names(folder: Path) -> set[str]:
    return {file.name[:2] for file in folder.glob("*.nii.gz")}


def test_cases_of_each_modality_are_predicted_by_themselves(tmp_path, images, monkeypatch):
    network, runner = trained(tmp_path, {"modalities": ["CT", "MR/T1"]}), Runner(tmp_path, "cpu", 1, {})
    predicted = []

    def measured(runner, log, report, seed, what, variables):
        folder = Path(what[what.index("-i") + 1])
        predicted.append((variables, names(folder), len(list(folder.glob("*.nii.gz")))))
        report.write_text(json.dumps({"predict_s": 2.0, "predict_peak_mib": 10.0 * len(predicted)}))

    monkeypatch.setattr(networks, "measured", measured)
    monkeypatch.setattr(networks, "train", lambda runner, network: {"step_s": 1.0})
    costs = networks.train_and_predict(runner, network, images, tmp_path / "predictions")
    of_modality = {variables["CONEMOS_MODALITY"]: cases for variables, cases, _ in predicted}
    assert of_modality == {"CT": {"c1", "c2"}, "MR/T1": {"m1"}, "unknown": {"x1"}}
    assert sorted(number for *_, number in predicted) == [2, 2, 4], "both channels"
    assert costs == {"step_s": 1.0, "predict_s": 6.0, "predict_peak_mib": 30.0}


@pytest.mark.parametrize("facts", [None, {"modalities": []}], ids=["stock", "not conditioned"])
def test_other_networks_predict_all_cases_at_once(tmp_path, images, facts):
    assert networks.by_modality(trained(tmp_path, facts), images) == {None: images}


def test_without_declared_modalities_all_cases_are_predicted_at_once(tmp_path, images):
    (images.parent / "modalities.json").unlink()
    assert networks.by_modality(trained(tmp_path, {"modalities": ["CT"]}), images) == {None: images}


def test_a_modality_that_training_did_not_see_is_unknown(tmp_path, images):
    parts = networks.by_modality(trained(tmp_path, {"modalities": ["CT"]}), images)
    assert {name: names(folder) for name, folder in parts.items()} == {"CT": {"c1", "c2"}, "unknown": {"m1", "x1"}}
