"""Some labels only, and on images of a given modality."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import HOW, MODEL, make_model
from nnunetv2.inference.predict_from_raw_data import (
    nnUNetPredictor,
    predict_entry_point,
    predict_entry_point_modelfolder,
)
from phantoms import PHANTOM
from raw_worlds import read_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.commands.predict import add_arguments
from nnunetv2_conemos.inference.predictor import Inference, predict
from nnunetv2_conemos.inference.streaming import StreamingPredictor
from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.methods.conemos import ConditionalUNet
from nnunetv2_conemos.methods.hermes.network import HermesUNet
from nnunetv2_conemos.networks.spec import labels_of_variable

APART = [*HOW[:3], "-npp", "1", "-nps", "2"]  # a process for preprocessing, threads for export


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


def stock_maps(images: Path, output: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, np.ndarray]:
    """What nnUNetv2_predict writes."""
    monkeypatch.setattr(sys, "argv", ["", "-i", str(images), "-o", str(output), *MODEL, *HOW, *more])
    predict_entry_point()
    return maps(output)


def test_all_labels_mirrored_and_some_at_a_time_are_as_nnunet_writes_them(model, images, tmp_path, monkeypatch):
    mirrored = [word for word in HOW if word != "--disable_tta"]
    words = ["-i", str(images), *MODEL, *mirrored]
    monkeypatch.setattr(sys, "argv", ["", "-o", str(tmp_path / "plain"), *words])
    predict_entry_point()
    assert cli.main(["predict", "-o", str(tmp_path / "ours"), *words, "--labels-at-once", "3"]) == 0
    plain, ours = maps(tmp_path / "plain"), maps(tmp_path / "ours")
    assert plain.keys() == ours.keys()
    assert all((plain[name] == ours[name]).all() for name in plain)
    beside = {"dataset.json", "plans.json", "predict_from_raw_data_args.json"}
    assert {file.name for file in (tmp_path / "ours").iterdir()} == {*plain, *beside}


def test_parts_predict_every_nth_case_also_of_some_labels(model, images, tmp_path):
    some = [*MODEL, *HOW, "--labels", "spleen", "stomach", "--labels-at-once", "1"]
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "whole"), *some]) == 0
    found = []
    for part in range(3):  # the last one has no case
        words = ["-num_parts", "3", "-part_id", str(part)]
        assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "parts"), *some, *words]) == 0
        found.append(len(maps(tmp_path / "parts")))
    assert found == [1, 2, 2]
    whole, parts = maps(tmp_path / "whole"), maps(tmp_path / "parts")
    assert all((whole[name] == parts[name]).all() for name in whole)


def test_cases_that_are_there_are_kept_on_request(model, images, tmp_path):
    words = ["predict", "-i", str(images), "-o", str(tmp_path / "out"), *MODEL, *HOW, "--labels", "liver"]
    assert cli.main(words) == 0
    first, second = sorted((tmp_path / "out").glob("*.nii.gz"))
    second.unlink()
    before = first.stat().st_mtime_ns
    assert cli.main([*words, "--continue_prediction"]) == 0
    assert first.stat().st_mtime_ns == before
    assert second.is_file()


def test_probabilities_and_models_of_stock_nnunet_are_predicted_as_nnunet_does(
    model, images, tmp_path, capsys, monkeypatch
):
    expected = stock_maps(images, tmp_path / "plain", monkeypatch, "--save_probabilities")
    words = ["predict", "-i", str(images), *MODEL, *HOW]
    assert cli.main([*words, "-o", str(tmp_path / "ours"), "--save_probabilities"]) == 0
    assert capsys.readouterr().err.count("memory grows with the number of labels") == 1
    with monkeypatch.context() as patched:
        patched.setattr(StreamingPredictor, "predict_from_data_iterator", None)
        plans = json.loads((model / "plans.json").read_text())
        (model / "plans.json").write_text(json.dumps({k: v for k, v in plans.items() if k != "conemos"}))
        assert cli.main([*words, "-o", str(tmp_path / "stock"), "-num_parts", "2", "-part_id", "1"]) == 0
    for folder in ("ours", "stock"):
        found = maps(tmp_path / folder)
        assert all((found[name] == expected[name]).all() for name in found)
    assert len(found) == 1
    name = sorted(expected)[0].replace(".nii.gz", ".npz")
    ours, plain = (np.load(tmp_path / folder / name)["probabilities"] for folder in ("ours", "plain"))
    assert (ours == plain).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MODEL, *HOW, "--labels-at-once", "0"], "labels_at_once: expected 1 or more, found 0"),
        ([*MODEL, *HOW, "--labels-at-once", "-3"], "labels_at_once: expected 1 or more, found -3"),
        ([*MODEL, *HOW, "--save_probabilities", "--labels-at-once", "2"], "Leave one of the two out"),
        ([*MODEL, *HOW, "-step_size", "0"], "step_size: expected a number above 0 and up to 1, found 0"),
        ([*MODEL, *HOW, "-part_id", "2", "-num_parts", "2"], "part 2 of 2: expected parts numbered from 0"),
        ([*MODEL, *HOW[:6], "-1"], "export (-nps): expected 0 or more processes, found -1"),
        ([*MODEL, *HOW, "-m", "folder"], "name the model: -d DATASET -c CONFIGURATION -tr TRAINER, or -m"),
        ([*MODEL[:-1], "1", *HOW], "expected checkpoint_final.pth in fold 1, found it in 0"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_options_that_cannot_be_used_are_explained(model, images, tmp_path, capsys, arguments, words):
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_an_error(model, images, tmp_path, capsys):
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "out"), *MODEL]) == 2
    assert "expected a GPU for cuda, found none" in capsys.readouterr().err


def test_options_of_nnunet_have_its_names_and_defaults(monkeypatch):
    parse = argparse.ArgumentParser.parse_args
    seen: list[argparse.ArgumentParser] = []

    def parsed_instead(self: argparse.ArgumentParser, *_: object) -> None:
        seen.append(self)
        raise InterruptedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed_instead)
    for program in (predict_entry_point, predict_entry_point_modelfolder):
        with pytest.raises(InterruptedError):
            program()
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    ours = argparse.ArgumentParser()
    add_arguments(ours)
    mine = {name: action for action in ours._actions for name in action.option_strings}
    for action in (action for parser in seen for action in parser._actions if action.dest != "help"):
        for name in action.option_strings:
            assert mine[name].nargs == action.nargs, name
            if name == "-f":
                assert mine[name].default == tuple(map(str, action.default))
            elif name not in ("-d", "-c", "-m"):
                assert mine[name].default == action.default, name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MODEL, *HOW, "--labels", "splen"], ["'splen'", "liver, spleen", "Did you mean 'spleen'?"]),
        ([*MODEL, *HOW, "--modality", "CT"], ["modality", "no modality", "'CT'"]),
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
            assert cli.main(["predict", "-i", str(folder), "-o", str(tmp_path / "out"), *which, *HOW]) == 2
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
