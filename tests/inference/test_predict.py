"""Some labels only, and on images of a given modality."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import HOW, MODEL, make_model
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor, predict_entry_point
from phantoms import PHANTOM
from raw_worlds import read_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.inference.predictor import Inference, predict
from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.methods.conemos import ConditionalUNet
from nnunetv2_conemos.methods.hermes.network import HermesUNet
from nnunetv2_conemos.networks.spec import labels_of_variable

APART = [*HOW[:3], "-npp", "1", "-nps", "1"]  # nnUNetv2_predict_from_modelfolder has no other way


def maps(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: read_nifti(file) for file in sorted(folder.glob("*.nii.gz"))}


def test_only_the_chosen_labels_are_computed_and_written(model, images, tmp_path, monkeypatch):
    queried: list[int] = []
    conditioned = ConditionalUNet.conditioned

    def counted(self, state, multi_hot):
        queried.extend((multi_hot.int().argmax(1) + 1).tolist())
        return conditioned(self, state, multi_hot)

    monkeypatch.setattr(ConditionalUNet, "conditioned", counted)
    two = ["--labels", "spleen", "stomach"]
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "two"), *MODEL, *HOW, *two]) == 0
    assert set(queried) == {2, 3}
    passes, queried[:] = len(queried), []
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "all"), *MODEL, *HOW]) == 0
    assert set(queried) == {1, 2, 3, 4}
    assert len(queried) == 2 * passes, "two labels cost half of four"
    some, every = maps(tmp_path / "two"), maps(tmp_path / "all")
    for name, array in some.items():
        assert set(np.unique(array)) == {0, 2, 3}
        chosen = np.isin(every[name], (2, 3))
        assert (array[chosen] == every[name][chosen]).all(), "the likeliest of all is the likeliest of two"
    assert "CONEMOS_LABELS" not in os.environ


def test_command_function_and_variable_make_the_same_choice(model, images, tmp_path, monkeypatch):
    folder = ["-m", str(model), "-f", "0"]
    one = ["--labels", "stomach"]
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "ours"), *folder, *APART, *one]) == 0
    monkeypatch.setenv("CONEMOS_LABELS", '["stomach"]')
    monkeypatch.setattr(sys, "argv", ["", "-i", str(images), "-o", str(tmp_path / "plain"), *MODEL, *HOW])
    predict_entry_point()
    monkeypatch.delenv("CONEMOS_LABELS")
    how = Inference(["0"], device="cpu", mirroring=False, preprocessing=0, export=0)
    written = predict(model, images, tmp_path / "function", labels=["stomach"], inference=how)
    ours, plain, function = (maps(tmp_path / name) for name in ("ours", "plain", "function"))
    assert [file.name for file in written] == list(ours)
    assert ours.keys() == plain.keys() == function.keys()
    assert all((ours[name] == plain[name]).all() and (ours[name] == function[name]).all() for name in ours)
    monkeypatch.setenv("CONEMOS_LABELS", '["stomach"]')
    with pytest.raises(ValueError, match="CONEMOS_LABELS is set"):
        make_model(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MODEL, "--labels", "splen"], ["'splen'", "liver, spleen", "Did you mean 'spleen'?"]),
        ([*MODEL, "--modality", "CT"], ["modality", "no modality", "'CT'"]),
        (["-d", "901", "--labels", "liver"], ["-c CONFIGURATION"]),
        (["-m", "nowhere", "--labels", "liver"], ["nowhere", "plans.json"]),
    ],
)
def test_unknown_labels_and_models_are_refused(model, images, tmp_path, capsys, arguments, words):
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "out"), *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_cut_off_is_named_before_anything_is_predicted(model, images, tmp_path, capsys):
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    file = next(iter(sorted(folder.iterdir())))
    file.write_bytes(file.read_bytes()[:-2000])
    assert cli.main(["predict", "-i", str(folder), "-o", str(tmp_path / "out"), *MODEL, *HOW]) == 2
    assert f"{file.name} is damaged" in capsys.readouterr().err
    with pytest.raises(OSError, match=f"{file.name} is damaged"):
        predict(model, folder, tmp_path / "out", inference=Inference(device="cpu", preprocessing=0, export=0))
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_the_variable_names_the_labels_that_exist(model, monkeypatch):
    monkeypatch.setenv("CONEMOS_LABELS", '["kidney"]')
    with pytest.raises(ValueError, match=r"does not predict kidney\. It predicts liver, spleen, stomach, gallbladder"):
        nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(str(model), (0,))


@pytest.fixture
def given_modalities(preprocessed_phantom, monkeypatch) -> list[int]:
    """A model of HermesTrainer that knows two modalities (CT 1, MR 2; one source declares none): those it is given."""
    for part in ("nnUNet_raw", "nnUNet_preprocessed"):
        file = preprocessed_phantom / part / PHANTOM / "dataset.json"
        content = json.loads(file.read_text())
        content["sources"]["site_a"]["modality"] = "CT"
        content["sources"]["site_b"]["modality"] = "MR"
        file.write_text(json.dumps(content))
    make_model(preprocessed_phantom, trainer_class=HermesTrainer)
    seen: list[int] = []
    fused = HermesUNet._fused

    def watched(self, shared, labels, modality):
        seen.extend(modality.tolist())
        return fused(self, shared, labels, modality)

    monkeypatch.setattr(HermesUNet, "_fused", watched)
    return seen


def test_a_model_is_conditioned_on_the_modality_that_is_given_or_on_none(
    given_modalities, images, tmp_path, capsys, monkeypatch
):
    model = [*MODEL[:5], "HermesTrainer", *MODEL[6:], *HOW]
    for chosen, number in (([], 0), (["--modality", "CT"], 1), (["--modality", "MR"], 2)):
        given_modalities.clear()
        words = ["predict", "-i", str(images), "-o", str(tmp_path / str(number)), *model, *chosen]
        assert cli.main(words) == 0
        assert set(given_modalities) == {number}
    assert "CONEMOS_MODALITY" not in os.environ
    words = ["predict", "-i", str(images), "-o", str(tmp_path / "no"), *model, "--modality", "PET"]
    assert cli.main(words) == 2
    assert "modality: this model knows CT, MR, found 'PET'" in capsys.readouterr().err
    monkeypatch.setenv("CONEMOS_MODALITY", "CT")
    with pytest.raises(ValueError, match="CONEMOS_MODALITY is set"):
        make_model(tmp_path, trainer_class=HermesTrainer)
    make_model(tmp_path)  # which looks at no modality


def test_completion_takes_the_modality_that_the_source_of_a_case_declares(given_modalities, preprocessed_phantom):
    model = preprocessed_phantom / "nnUNet_results" / PHANTOM / "HermesTrainer__nnUNetPlans__tiny"
    assert cli.main(["complete", "-m", str(model), "-d", "901", "-o", "Dataset911_Complete", *HOW]) == 0
    assert set(given_modalities) == {0, 1, 2}


def test_stock_models_cannot_predict_chosen_labels(model, images, tmp_path, capsys):
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps({k: v for k, v in plans.items() if k != "conemos"}))
    queried = ["predict", "-i", str(images), "-o", str(tmp_path / "out"), *MODEL, "--labels", "liver"]
    assert cli.main(queried) == 2
    assert "was not trained by a trainer of this package" in capsys.readouterr().err


def test_images_without_a_channel_are_named_before_anything_is_predicted(model, images, tmp_path, capsys):
    for name in ("c00.nii.gz", "c00_0001.nii.gz"):
        folder = tmp_path / name.removesuffix(".nii.gz")
        folder.mkdir()
        shutil.copyfile(next(images.glob("*.nii.gz")), folder / name)
        for which in (MODEL, ["-m", str(model), "-f", "0"]):
            assert cli.main(["predict", "-i", str(folder), "-o", str(tmp_path / "out"), *which]) == 2
            message = capsys.readouterr().err
            assert "expected" in message
            assert "_0000.nii.gz" in message
            assert name in message


@pytest.mark.parametrize("text", ["liver", "liver,spleen", '{"a": 1}', "[1]", "[", '"liver"'])
def test_the_variable_is_a_json_list(text: str):
    with pytest.raises(ValueError, match="CONEMOS_LABELS: "):
        labels_of_variable(text)
    assert labels_of_variable('["kidney, left", "a,b"]') == ["kidney, left", "a,b"]
    assert labels_of_variable(" ") == []
