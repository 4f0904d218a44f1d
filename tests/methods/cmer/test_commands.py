"""nnU-Net's commands and `conemos cams`, from training to annotated cases."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from paths import ROOT
from phantoms import PHANTOM
from pools import pools_of_threads
from raw_worlds import read_nifti
from tag_worlds import TINY

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.methods import CMERTrainer


def test_the_commands_of_nnunet_train_resume_and_predict(preprocessed_phantom, tmp_path, monkeypatch, capsys):
    """2D slices of volumes, two sources tagged and one with masks; all in this process."""
    raw, done = (preprocessed_phantom / part / PHANTOM for part in ("nnUNet_raw", "nnUNet_preprocessed"))
    content = json.loads((raw / "dataset.json").read_text())
    content["sources"]["site_a"] |= {"annotated": [], "tagged": ["liver"]}
    cases = sorted({file.name[:-12] for file in (raw / "imagesTr").glob("site_a_*")})
    content["tags"] = {"axis": "z", "cases": {case: {"liver": [4, 5, 6, 7]} for case in cases}}
    for folder in (raw, done):
        (folder / "dataset.json").write_text(json.dumps(content))
    assert cli.main(["slices", "901", "--batch", "4", "--name", "whole"]) == 0
    plans = json.loads((done / "nnUNetPlans.json").read_text())
    plans["configurations"]["whole"]["conemos"] = TINY
    (done / "nnUNetPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))
    pools_of_threads(monkeypatch)  # of the final validation

    def fresh(epochs, resume=False):
        made = CMERTrainer(plans | {"continue_training": resume}, "whole", 0, content, torch.device("cpu"))
        made.num_iterations_per_epoch = made.num_val_iterations_per_epoch = 2
        made.num_epochs = epochs
        return made

    first = fresh(1)
    first.run_training()
    final = Path(first.output_folder) / "checkpoint_final.pth"
    trainer = fresh(2, resume=True)
    trainer.initialize()
    trainer.load_checkpoint(str(final))
    assert trainer.current_epoch == 1
    resumed = trainer.network.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in first.network.state_dict().items())
    steps = [state["step"].item() for state in trainer.optimizer.state_dict()["state"].values()]
    assert set(steps) == {2.0}, "of the optimiser, which goes on"
    trainer.run_training()
    assert trainer.current_epoch == 2
    trainer.perform_actual_validation()
    checkpoint = torch.load(final, weights_only=False)
    checkpoint["network_weights"]["threshold"][:] = -0.01  # everything but what is classified as absent
    torch.save(checkpoint, final)
    predicted = predict(raw, tmp_path / "out", monkeypatch)
    assert any(p.any() for p in predicted), "the threshold of the checkpoint is used"
    checkpoint["network_weights"]["threshold"][:] = 1.01
    torch.save(checkpoint, final)
    assert not any(p.any() for p in predict(raw, tmp_path / "none", monkeypatch))
    annotated_by_the_model(final.parent.parent, raw, cases, checkpoint["network_weights"]["threshold"])
    assert "'liver' was annotated in 0 of 12 slices that are tagged with it: look at" in capsys.readouterr().out


def annotated_by_the_model(model, raw, cases, threshold):
    """`conemos cams` with a model that finds nothing: background where the tags say so and everywhere else."""
    assert threshold[0] > 1
    out = raw.parent / "Dataset902_Stage2"
    how = ["-f", "0", "-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0"]
    words = ["cams", str(model), "-d", "901", "-o", out.name, *how]
    assert cli.main([*words, "--margin", "0.6"]) == 2
    assert cli.main([*words, "--margin", "0.05"]) == 0
    content = json.loads((out / "dataset.json").read_text())
    assert content["sources"]["site_a (pseudo)"]["annotated"] == ["liver"]
    assert content["labels"]["ignore"] == 5
    table = SourceTable.from_dataset_json(content, raw_cases(out))
    assert all(table.annotated(case) == ("liver",) for case in cases)
    for case, files in raw_cases(out).items():
        ours, theirs = (read_nifti(Path(file)) for file in (files["label"], raw / "labelsTr" / f"{case}.nii.gz"))
        assert ours.shape == theirs.shape
        if case in cases:
            assert not ours[[z for z in range(len(ours)) if z not in (4, 5, 6, 7)]].any(), "tagged as absent"
            assert set(np.unique(ours)) <= {0, 5}
        else:
            assert np.array_equal(ours, theirs)
    folds = json.loads((out / "splits_final.json").read_text())
    assert not any(set(cases) & set(fold["val"]) for fold in folds)
    assert cli.main(words) == 2, "an existing dataset is not replaced"


def predict(raw, output, monkeypatch):
    words = ["-i", str(raw / "imagesTs"), "-o", str(output), "-d", "901", "-c", "whole", "-tr", "CMERTrainer"]
    how = ["-f", "0", "-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0"]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *words, *how])
    threads = torch.get_num_threads()
    predict_entry_point()
    torch.set_num_threads(threads)  # which prediction on a CPU raises
    files = sorted(output.glob("*.nii.gz"))
    assert files
    maps = [read_nifti(file) for file in files]
    for file, found in zip(files, maps, strict=True):
        assert found.shape == read_nifti(raw / "imagesTs" / f"{file.name[:-7]}_0000.nii.gz").shape
    return maps
