"""One label of a model, or all, for stock nnU-Net."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from models import HOW, make_model
from nnunetv2.model_sharing.model_import import install_model_from_zip_file
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from phantoms import PHANTOM
from raw_worlds import read_nifti
from stock import predict_without_the_plugin

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.inference.export import Exported, installed_plans
from nnunetv2_conemos.text_files import read_object

APART = [*HOW[:3], "-npp", "1", "-nps", "1"]  # nnUNetv2_predict_from_modelfolder has no other way


def maps(folder: Path) -> dict[str, np.ndarray]:
    return {file.name: read_nifti(file) for file in sorted(folder.glob("*.nii.gz"))}


def test_an_exported_label_needs_no_plugin_and_is_the_same(model, images, tmp_path, monkeypatch):
    output, archive = tmp_path / "stock", tmp_path / "liver.zip"
    words = ["export", "-m", str(model), "--label", "spleen", "-o", str(output), "--zip", str(archive)]
    assert cli.main(words) == 0
    predict_without_the_plugin(output, images, tmp_path / "without", *APART)
    folder = ["-m", str(model), "-f", "0", "--labels", "spleen"]
    assert cli.main(["predict", "-i", str(images), "-o", str(tmp_path / "with"), *folder, *HOW]) == 0
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
    ("changed", "message"),
    [
        ({"conemos": {"untaught": [], "labels": ["liver"]}}, "expected the labels that the model was trained for"),
        ({"conemos": {"untaught": 7}}, "conemos.untaught: Input should be a valid list"),
        ({"conemos": {}}, "conemos.untaught: Field required"),
        ({"configurations": {"tiny": 1e308}}, "configurations.tiny: Input should be a valid dictionary"),
    ],
)
def test_damaged_plans_are_refused(model, tmp_path, capsys, changed, message):
    copy = Path(shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("fold_*")))
    write_json(copy / "plans.json", read_object(copy / "plans.json") | changed)
    assert cli.main(["export", "-m", str(copy), "--label", "spleen", "-o", str(tmp_path / "stock")]) == 2
    assert f"json: {message}" in capsys.readouterr().err
    assert not (tmp_path / "stock").exists()


def test_plans_without_the_configuration_of_a_checkpoint_are_refused(model, tmp_path, capsys):
    copy = Path(shutil.copytree(model, tmp_path / "model"))
    plans = read_object(copy / "plans.json")
    del plans["configurations"]["tiny"]
    write_json(copy / "plans.json", plans)
    assert cli.main(["export", "-m", str(copy), "--label", "spleen", "-o", str(tmp_path / "stock")]) == 2
    assert "configuration tiny: plans.json and dataset.json do not make a network" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "plans"),
    [("left kidney", "left_kidney"), ("(left) kidney", "left_kidney"), ("肝", "label_2"), (None, "exported")],
)
def test_installed_names_have_no_double_underscore(label, plans):
    class Model:
        plans = {"plans_name": "nnUNetPlans", "dataset_name": "Dataset001_A"}  # noqa: RUF012
        labels = LabelSpace(("spleen", "肝"), ((1,), (2,)), False, None)

    exported = Exported(Path("stock"), None, "Dataset001_A", installed_plans(Model(), label), "2d")
    assert exported.installed == f"Dataset001_A/nnUNetTrainer__nnUNetPlans_{plans}__2d"


@pytest.mark.parametrize("own", [True, False])
def test_an_export_replaces_no_other_folder(model, tmp_path, capsys, own):
    """Neither the trained model itself nor a folder of something else."""
    output = model if own else tmp_path / "data"
    output.mkdir(exist_ok=True)
    (output / "kept").touch()
    assert cli.main(["export", "-m", str(model), "--label", "liver", "-o", str(output), "--overwrite"]) == 2
    assert (
        "holds files that are read to make the result" if own else "nothing says that this package wrote it"
    ) in capsys.readouterr().err
    assert (output / "kept").is_file()


@pytest.mark.parametrize("options", [{"after_nonlinearity": True}, {"image_features": True}])
def test_options_that_do_not_fold_are_refused(preprocessed_phantom, tmp_path, capsys, options):
    model = make_model(preprocessed_phantom, options=options)
    assert cli.main(["export", "-m", str(model), "--label", "liver", "-o", str(tmp_path / "out")]) == 2
    assert "does not fold" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main(["export", "-m", str(model), "--label", "livre", "-o", str(tmp_path / "out")]) == 2
    assert "Did you mean 'liver'?" in capsys.readouterr().err
