"""What the trainers with an unlabelled stream have in common: nnU-Net's commands, in this process."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import HOW, MODEL, make_model
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from paths import ROOT
from phantoms import PHANTOM
from raw_worlds import read_nifti

from nnunetv2_conemos.benchmark.plots.confident import confident_shares, draw_confident
from nnunetv2_conemos.inference.model_folder import read_checkpoint
from nnunetv2_conemos.methods import GenericSSLTrainer, UniMOSTrainer


@pytest.fixture
def partly_unlabelled(preprocessed_phantom: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """3D volumes of two sources annotated for some labels (none for label 3), and of one annotated for nothing."""
    for part in ("nnUNet_raw", "nnUNet_preprocessed"):
        file = preprocessed_phantom / part / PHANTOM / "dataset.json"
        content = json.loads(file.read_text())
        content["sources"]["site_c"]["annotated"] = []
        file.write_text(json.dumps(content))
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))
    return preprocessed_phantom


@pytest.mark.parametrize("trainer_class", [UniMOSTrainer, GenericSSLTrainer])
def test_the_commands_of_nnunet_train_resume_and_predict(partly_unlabelled, tmp_path, monkeypatch, trainer_class):
    model = make_model(partly_unlabelled, trainer_class=trainer_class)
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    arguments = torch.load(checkpoint, weights_only=False)["init_args"]

    def trained(epochs, resume):
        fresh = {
            **arguments,
            "plans": arguments["plans"] | {"continue_training": resume},
            "device": torch.device("cpu"),
        }
        trainer = trainer_class(**fresh)
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
        trainer.num_epochs = epochs
        if resume:
            trainer.initialize()
            trainer.load_checkpoint(str(checkpoint))
            assert trainer.current_epoch == epochs - 1
        trainer.run_training()
        return trainer

    first = trained(1, resume=False)
    resumed = trained(2, resume=True)
    assert resumed.current_epoch == 2
    logged = resumed.logger.local_logger.my_fantastic_logging
    before = first.logger.local_logger.my_fantastic_logging
    for name in ("train_losses", *trainer_class.extras):
        assert len(logged[name]) == 2, name
        assert logged[name][:1] == before[name]
    assert (model / "fold_0" / "streams.png").stat().st_size > 5_000
    shares = confident_shares(read_checkpoint(checkpoint))
    assert (shares is not None) == (trainer_class is UniMOSTrainer)
    if shares:
        assert [done for done, _ in shares] == [1, 2], "points of both trainings"
        assert all(0 <= share <= 1 for _, share in shares)
        draw_confident({"UniMOSTrainer": shares}, tmp_path / "accepted.png")
        assert (tmp_path / "accepted.png").stat().st_size > 5_000

    images = partly_unlabelled / "nnUNet_raw" / PHANTOM / "imagesTs"
    words = ["-i", str(images), "-o", str(tmp_path / "out"), *MODEL[:5], trainer_class.__name__, *MODEL[6:], *HOW]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *words])
    threads = torch.get_num_threads()
    predict_entry_point()
    torch.set_num_threads(threads)  # which prediction on a CPU raises
    files = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert len(files) == len(list(images.glob("*_0000.nii.gz")))
    for file in files:
        predicted = read_nifti(file)
        assert predicted.shape == read_nifti(images / f"{file.name[:-7]}_0000.nii.gz").shape
        assert set(np.unique(predicted)) <= {0, 1, 2, 4}, "nobody annotates label 3"
