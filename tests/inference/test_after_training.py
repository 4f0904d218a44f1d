"""What users do with a trained model: some labels only, missing labels filled in, one label for stock nnU-Net."""

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
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from phantoms import PHANTOM, set_folders
from raw_worlds import read_nifti
from stock import predict_without_the_plugin

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.inference import completion as complete
from nnunetv2_conemos.inference import export
from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.methods.conemos import ConditionalUNet
from nnunetv2_conemos.methods.hermes.network import HermesUNet

LABELS = ["liver", "spleen", "stomach", "gallbladder"]
APART = [*HOW[:3], "-npp", "1", "-nps", "1"]  # nnUNetv2_predict_from_modelfolder has no other way
TARGET = "Dataset911_Complete"


@pytest.fixture(scope="module")
def _trained(_preprocessed_template, tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("trained")
    shutil.copytree(_preprocessed_template, base, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_folders(base, monkeypatch)
        make_model(base, steps=300)
    return base / "nnUNet_results"


@pytest.fixture
def model(_trained, preprocessed_phantom) -> Path:
    shutil.copytree(_trained, preprocessed_phantom / "nnUNet_results", dirs_exist_ok=True)
    return preprocessed_phantom / "nnUNet_results" / PHANTOM / "ConditionalFiLMTrainer__nnUNetPlans__tiny"


@pytest.fixture
def images(preprocessed_phantom) -> Path:
    return preprocessed_phantom / "nnUNet_raw" / PHANTOM / "imagesTs"


def maps(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: read_nifti(file) for file in sorted(folder.glob("*.nii.gz"))}


def test_only_the_labels_asked_are_computed_and_written(model, images, tmp_path, monkeypatch):
    queried: list[int] = []
    code = ConditionalUNet.code

    def counted(self, multi_hot):
        queried.extend((multi_hot.int().argmax(1) + 1).tolist())
        return code(self, multi_hot)

    monkeypatch.setattr(ConditionalUNet, "code", counted)
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


def test_plain_nnunet_makes_the_same_choice_by_the_variable(model, images, tmp_path, monkeypatch):
    folder = ["-m", str(model), "-f", "0"]
    one = ["--labels", "stomach"]
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "ours"), *folder, *APART, *one]) == 0
    monkeypatch.setenv("CONEMOS_LABELS", "stomach")
    monkeypatch.setattr(sys, "argv", ["", "-i", str(images), "-o", str(tmp_path / "plain"), *MODEL, *HOW])
    predict_entry_point()
    ours, plain = maps(tmp_path / "ours"), maps(tmp_path / "plain")
    assert ours.keys() == plain.keys()
    assert all((ours[name] == plain[name]).all() for name in ours)
    with pytest.raises(ValueError, match="CONEMOS_LABELS is set"):
        make_model(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*MODEL, "--labels", "splen"], ["'splen'", "liver, spleen", "Did you mean 'spleen'?"]),
        ([*MODEL, "--modality", "CT"], ["--modality", "no modality", "'CT'"]),
        (["-d", "901", "--labels", "liver"], ["-c CONFIGURATION"]),
        (["-m", "nowhere", "--labels", "liver"], ["nowhere", "plans.json"]),
    ],
)
def test_unknown_labels_and_models_are_refused(model, images, tmp_path, capsys, arguments, words):
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "out"), *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_the_variable_names_the_labels_that_exist(model, monkeypatch):
    monkeypatch.setenv("CONEMOS_LABELS", "kidney")
    with pytest.raises(ValueError, match=r"does not predict kidney\. It predicts liver, spleen, stomach, gallbladder"):
        nnUNetPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(str(model), (0,))


@pytest.fixture
def told(preprocessed_phantom, monkeypatch) -> list[int]:
    """A model of HermesTrainer that knows two modalities (CT 1, MR 2; one source declares none): what it is told."""
    for part in ("nnUNet_raw", "nnUNet_preprocessed"):
        file = preprocessed_phantom / part / PHANTOM / "dataset.json"
        content = json.loads(file.read_text())
        content["sources"]["site_a"]["modality"] = "CT"
        content["sources"]["site_b"]["modality"] = "MR"
        file.write_text(json.dumps(content))
    make_model(preprocessed_phantom, trainer_class=HermesTrainer)
    seen: list[int] = []
    sampler = HermesUNet._ask

    def watched(self, steps, state, labels, modality):
        seen.extend(modality.tolist())
        return sampler(self, steps, state, labels, modality)

    monkeypatch.setattr(HermesUNet, "_ask", watched)
    return seen


def test_a_model_is_told_the_modality_that_is_said_or_none(told, images, tmp_path, capsys, monkeypatch):
    model = [*MODEL[:5], "HermesTrainer", *MODEL[6:], *HOW]
    for chosen, number in (([], 0), (["--modality", "CT"], 1), (["--modality", "MR"], 2)):
        told.clear()
        words = ["predict", "-i", str(images), "-o", str(tmp_path / str(number)), *model, *chosen]
        assert cli.main(words) == 0
        assert set(told) == {number}
    assert "CONEMOS_MODALITY" not in os.environ
    words = ["predict", "-i", str(images), "-o", str(tmp_path / "no"), *model, "--modality", "PET"]
    assert cli.main(words) == 2
    assert "--modality: this model knows CT, MR, found 'PET'" in capsys.readouterr().err
    monkeypatch.setenv("CONEMOS_MODALITY", "CT")
    with pytest.raises(ValueError, match="CONEMOS_MODALITY is set"):
        make_model(tmp_path, trainer_class=HermesTrainer)
    make_model(tmp_path)  # which looks at no modality


def test_completion_tells_what_the_source_of_a_case_declares(told, preprocessed_phantom):
    model = preprocessed_phantom / "nnUNet_results" / PHANTOM / "HermesTrainer__nnUNetPlans__tiny"
    assert run_complete(model) == 0
    assert set(told) == {0, 1, 2}


def test_stock_models_cannot_be_asked_for_labels(model, images, tmp_path, capsys):
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps({k: v for k, v in plans.items() if k != "conemos"}))
    queried = ["predict", "-i", str(images), "-o", str(tmp_path / "out"), *MODEL, "--labels", "liver"]
    assert cli.main(queried) == 2
    assert "was not trained by a trainer of this package" in capsys.readouterr().err


def run_complete(model: Path, *words: str) -> int:
    return cli.main(["complete", "-m", str(model), "-d", "901", "-o", TARGET, *HOW, *words])


def raw_table(base: Path) -> SourceTable:
    raw = base / "nnUNet_raw" / PHANTOM
    return SourceTable.from_dataset_json(json.loads((raw / "dataset.json").read_text()), raw_cases(raw))


def test_missing_labels_are_filled_in_and_annotated_voxels_stay(model, preprocessed_phantom, capsys):
    assert run_complete(model) == 0
    raw = preprocessed_phantom / "nnUNet_raw"
    result = json.loads((raw / TARGET / "dataset.json").read_text())
    assert "sources" not in result
    assert result["labels"] == {"background": 0, "liver": 1, "spleen": 2, "stomach": 3, "gallbladder": 4}
    table, files = raw_table(preprocessed_phantom), raw_cases(raw / TARGET)
    assert sorted(files) == table.cases
    filled: set[int] = set()
    for case, entry in files.items():
        before = read_nifti(raw / PHANTOM / "labelsTr" / f"{case}.nii.gz")
        after = read_nifti(Path(entry["label"]))
        own = [LABELS.index(name) + 1 for name in table.annotated(case)]
        assert (after[before > 0] == before[before > 0]).all()
        assert (np.isin(after, own) == np.isin(before, own)).all(), "annotated labels are the annotators'"
        filled |= set(np.unique(after[before == 0]))
        assert Path(entry["images"][0]).is_file()
    assert filled >= {0, 1, 2, 3}, "what was missing is filled in, as far as so short a training finds it"
    assert "filled in" in capsys.readouterr().out
    assert not list(raw.glob(".*"))


def test_uncertain_voxels_are_ignored(model, preprocessed_phantom):
    assert run_complete(model, "--uncertain", "0.1") == 0
    raw = preprocessed_phantom / "nnUNet_raw"
    labels = json.loads((raw / TARGET / "dataset.json").read_text())["labels"]
    assert LabelManager(labels, None).ignore_label == 5
    sure = completed_with(model, preprocessed_phantom)
    for case, certain in sure.items():
        before = read_nifti(raw / PHANTOM / "labelsTr" / f"{case}.nii.gz")
        after = read_nifti(raw / TARGET / "labelsTr" / f"{case}.nii.gz")
        assert (after == 5).any()
        assert (after[before > 0] == before[before > 0]).all(), "annotated voxels are never uncertain"
        assert (after[after != 5] == certain[after != 5]).all()


def completed_with(model: Path, base: Path) -> dict[str, np.ndarray]:
    words = ["complete", "-m", str(model), "-d", "901", "-o", "Dataset912_Sure", *HOW]
    assert cli.main(words) == 0
    folder = base / "nnUNet_raw" / "Dataset912_Sure" / "labelsTr"
    return {name.removesuffix(".nii.gz"): array for name, array in maps(folder).items()}


def test_cases_that_lack_nothing_stay_as_they_are(model, preprocessed_phantom):
    raw = preprocessed_phantom / "nnUNet_raw"
    file = raw / PHANTOM / "dataset.json"
    content = json.loads(file.read_text())
    rest = {**content["sources"]["site_a"], "cases": ["site_a_0[12]"]}
    complete_case = {"cases": ["site_a_00"], "annotated": list(LABELS)}
    content["sources"] |= {"site_a": rest, "complete": complete_case}
    file.write_text(json.dumps(content))
    assert run_complete(model, "--uncertain", "0.1") == 0
    before, after = (read_nifti(raw / name / "labelsTr" / "site_a_00.nii.gz") for name in (PHANTOM, TARGET))
    assert (before == after).all()


def test_unsure_is_what_decides():
    z = np.array([[0.0, 0.0, 0.0], [1.5, 0.3, 0.3], [-2.0, -2.0, 30.0]])  # background, a, b at three voxels
    softmax = np.exp(z) / np.exp(z).sum(0)
    assert complete.is_unsure(softmax, [0, 1], False, 0.1).tolist() == [False, True, False]
    assert complete.is_unsure(softmax, [0], False, 0.1).tolist() == [False, True, True]
    sigmoid = np.array([[0.9, 0.55], [0.45, 0.9]])
    assert complete.is_unsure(sigmoid, [0, 1], True, 0.1).tolist() == [True, True]
    assert complete.is_unsure(sigmoid, [0], True, 0.1).tolist() == [False, True]


def test_what_tags_say_is_absent_is_not_filled_in(model, preprocessed_phantom):
    raw = preprocessed_phantom / "nnUNet_raw"
    everywhere = completed_with(model, preprocessed_phantom)
    (here,) = (case for case in ("site_a_00",) if (everywhere[case] == 2).any())
    file = raw / PHANTOM / "dataset.json"
    content = json.loads(file.read_text())
    tagged = {"cases": [here], "annotated": ["liver"], "tagged": ["spleen", "stomach"]}
    rest = {**content["sources"]["site_a"], "cases": ["site_a_0[12]"]}
    of_case = {"spleen": [4, 5, 6, 7], "stomach": False}
    changed = {"sources": {**content["sources"], "site_a": rest, "tagged": tagged}, "tags": {"cases": {here: of_case}}}
    file.write_text(json.dumps(content | changed))
    assert run_complete(model) == 0
    found = maps(raw / TARGET / "labelsTr")[f"{here}.nii.gz"]
    before = everywhere[here]
    expected = np.where(before == 3, 0, before)  # the stomach is in no slice
    others = [z for z in range(len(before)) if z not in range(4, 8)]
    assert (expected[others] == 2).any(), "there is something to take away"
    expected[others] = np.where(expected[others] == 2, 0, expected[others])
    assert (found == expected).all()


def test_a_completion_does_not_go_on_with_another_model(model, preprocessed_phantom, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(complete, "complete_batch", interrupted)
        assert run_complete(model) == 130
    os.utime(model / "fold_0" / "checkpoint_final.pth", (0, 0))
    assert run_complete(model) == 2
    assert "was begun with other settings (trained weights)" in capsys.readouterr().err


def test_an_interrupted_completion_goes_on_where_it_stopped(model, preprocessed_phantom, monkeypatch, capsys):
    monkeypatch.setattr(complete, "AT_ONCE", 1)
    predicted: list[str] = []
    batch = complete.complete_batch

    def interrupted(completion, predictor, jobs, folder):
        if len(predicted) == 4:
            raise KeyboardInterrupt
        predicted.extend(job.case for job in jobs)
        batch(completion, predictor, jobs, folder)

    with monkeypatch.context() as patched:
        patched.setattr(complete, "complete_batch", interrupted)
        assert run_complete(model) == 130
    raw = preprocessed_phantom / "nnUNet_raw"
    assert not (raw / TARGET).exists()
    assert run_complete(model, "--uncertain", "0.1") == 2
    assert "uncertain" in capsys.readouterr().err
    later: list[str] = []

    def counted(completion, predictor, jobs, folder):
        later.extend(job.case for job in jobs)
        batch(completion, predictor, jobs, folder)

    monkeypatch.setattr(complete, "complete_batch", counted)
    assert run_complete(model) == 0
    assert sorted(predicted + later) == raw_table(preprocessed_phantom).cases
    assert len(later) == 5
    assert run_complete(model) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_what_cannot_be_completed_is_refused(model, preprocessed_phantom, capsys):
    assert run_complete(model, "--uncertain", "0.7") == 2
    assert run_complete(model, "-chk", "checkpoint_best.pth") == 2
    assert run_complete(model, "-f", "3") == 2
    assert "fold 3" in capsys.readouterr().err
    file = preprocessed_phantom / "nnUNet_raw" / PHANTOM / "dataset.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k != "sources"}))
    assert run_complete(model) == 2
    assert "nothing is missing" in capsys.readouterr().err
    labels = {**content["labels"], "kidney": 5}
    file.write_text(json.dumps({**content, "labels": labels}))
    assert run_complete(model) == 2
    assert "other labels" in capsys.readouterr().err


def test_an_exported_label_needs_no_plugin_and_is_the_same(model, images, tmp_path, monkeypatch):
    output, archive = tmp_path / "stock", tmp_path / "liver.zip"
    words = ["export", "-m", str(model), "--label", "spleen", "-o", str(output), "--zip", str(archive)]
    assert cli.main(words) == 0
    predict_without_the_plugin(output, images, tmp_path / "without", *APART)
    folder = ["-m", str(model), "-f", "0", "--labels", "spleen"]
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "with"), *folder, *APART]) == 0
    theirs, ours = maps(tmp_path / "without"), maps(tmp_path / "with")
    assert theirs.keys() == ours.keys()
    for name, array in ours.items():
        assert (array == 2).any()
        assert (theirs[name] == (array == 2)).all()
    text = (output / "plans.json").read_text() + (output / "dataset.json").read_text()
    assert "conemos" not in text
    checkpoint = torch.load(output / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == nnUNetTrainer.__name__
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    install_model_from_zip_file(str(archive))
    installed = tmp_path / "elsewhere" / PHANTOM / "nnUNetTrainer__nnUNetPlans_spleen__tiny" / "fold_0"
    assert (installed / "checkpoint_final.pth").is_file(), "beside a stock model of that dataset, not over it"
    assert cli.main(words) == 2, "nothing is overwritten unasked"
    assert cli.main([*words, "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("label", "plans"),
    [("left kidney", "left_kidney"), ("(left) kidney", "left_kidney"), ("肝", "label_2"), (None, "exported")],
)
def test_installed_names_have_no_double_underscore(label, plans):
    class Model:
        plans = {"plans_name": "nnUNetPlans", "dataset_name": "Dataset001_A"}  # noqa: RUF012
        labels = LabelSpace(("spleen", "肝"), ((1,), (2,)), False, None)

    inside = export.installed_name(Model(), "2d", label)
    assert inside == f"Dataset001_A/nnUNetTrainer__nnUNetPlans_{plans}__2d"


@pytest.mark.parametrize("own", [True, False])
def test_an_export_replaces_no_other_folder(model, tmp_path, capsys, own):
    """Neither the trained model itself nor a folder of something else."""
    output = model if own else tmp_path / "data"
    output.mkdir(exist_ok=True)
    (output / "kept").touch()
    assert cli.main(["export", "-m", str(model), "--label", "liver", "-o", str(output), "--overwrite"]) == 2
    assert ("holds files that the result" if own else "is no model folder") in capsys.readouterr().err
    assert (output / "kept").is_file()


@pytest.mark.parametrize("options", [{"after_nonlinearity": True}, {"image_features": True}])
def test_options_that_do_not_fold_are_refused(preprocessed_phantom, tmp_path, capsys, options):
    model = make_model(preprocessed_phantom, options=options)
    assert cli.main(["export", "-m", str(model), "--label", "liver", "-o", str(tmp_path / "out")]) == 2
    assert "does not fold" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(["export", "-m", str(model), "--label", "livre", "-o", str(tmp_path / "out")]) == 2
    assert "Did you mean 'liver'?" in capsys.readouterr().err
