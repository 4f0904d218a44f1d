"""Checkpoints made before the package was divided into folders still load, and predict what they predicted."""

import json

import pytest
import torch
from architectures import build, plans
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from paths import ROOT
from raw_worlds import read_nifti

from nnunetv2_conemos import methods
from nnunetv2_conemos.networks.spec import PLANS_KEY, RECORDED

OLD = ROOT / "tests" / "data" / "old_layout"
STATE_DICTS = json.loads((OLD / "state_dicts.json").read_text())


def test_an_old_checkpoint_predicts_the_same_map_voxel_by_voxel(tmp_path, monkeypatch):
    """Through nnU-Net's own predictor and look-up of trainers."""
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(OLD / "model"), (0,), "checkpoint_final.pth")
    threads = torch.get_num_threads()
    predictor.predict_from_files_sequential([[str(OLD / "test_00_0000.nii.gz")]], [str(tmp_path / "test_00")])
    torch.set_num_threads(threads)  # which prediction on a CPU raises
    expected = read_nifti(OLD / "test_00_expected.nii.gz")
    assert len(set(expected.flat)) > 2, "there is something to see"
    assert (read_nifti(tmp_path / "test_00.nii.gz") == expected).all()


@pytest.mark.parametrize("name", STATE_DICTS)
def test_networks_have_the_parameters_that_they_had(name):
    old = STATE_DICTS[name]
    manager = plans(2, "plain", **old["options"])
    del manager.plans[PLANS_KEY][RECORDED]  # their options were not recorded yet
    network = build(getattr(methods, name), manager)
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == old["state_dict"]


def test_every_exported_trainer_is_among_them():
    assert set(STATE_DICTS) == {name for name in methods.__all__ if "_" not in name}
