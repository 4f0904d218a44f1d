"""The data tools by their real commands on real volumes: two hearts' datasets become one, and one model serves on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from programs import command
from raw_worlds import read_nifti
from real import DATA, real_data
from stock import predict_without_the_plugin

pytestmark = [*real_data, pytest.mark.slow]
TRAINER, TINY = "ConditionalFiLMTrainer_1epoch", "tiny"
LV = "ventricle, left"  # a name may hold what separates the fields of a table
FAST = ("-device", "cpu", "--disable_tta", "-npp", "1", "-nps", "1")


def few_cases(name: str, number: int, folder: Path) -> Path:
    """A complete raw dataset of the first cases of a real one."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for label in sorted((DATA / name / "labelsTr").iterdir())[:number]:
        case = label.name.removesuffix(".nii.gz")
        shutil.copy(label, folder / "labelsTr")
        shutil.copy(DATA / name / "imagesTr" / f"{case}_0000.nii.gz", folder / "imagesTr")
    content = json.loads((DATA / name / "dataset.json").read_text())
    labels = {LV if name == "LV" else name: value for name, value in content["labels"].items()}
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": labels, "numTraining": number}))
    return folder


def plan(base: Path, number: int, name: str) -> None:
    """Plan and preprocess in 2D, and add a CPU-sized configuration."""
    command("nnUNetv2_plan_and_preprocess", "-d", number, "-c", "2d", "-npfp", 1, "-np", 1)
    file = base / "nnUNet_preprocessed" / name / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    architecture = plans["configurations"]["2d"]["architecture"]
    kwargs = architecture["arch_kwargs"]
    stages = kwargs["n_stages"]
    kwargs["features_per_stage"] = [min(8 * 2**i, 32) for i in range(stages)]
    plans["configurations"][TINY] = {"inherits_from": "2d", "batch_size": 4, "architecture": architecture}
    file.write_text(json.dumps(plans))


def test_hide_merge_train_predict_a_label_complete_train_stock_and_export(nnunet_folders):
    base = nnunet_folders
    for name, number, place in (("ACDC", 7, 21), ("MSCMR", 4, 22)):
        complete = few_cases(name, number, base / name)
        command("conemos", "hide", complete, "-o", f"Dataset{place:03d}_{name}", "--per-case", 1, "-np", 1)
    command("conemos", "merge", 21, 22, "-o", "Dataset030_Heart", "-np", 2)
    command("conemos", "check", 30, "-np", 2)
    plan(base, 30, "Dataset030_Heart")
    command("nnUNetv2_train", 30, TINY, 0, "-tr", TRAINER, "-device", "cpu")

    images = base / "ACDC" / "imagesTr"
    model = base / "nnUNet_results" / "Dataset030_Heart" / f"{TRAINER}__nnUNetPlans__{TINY}"
    queried = ("-d", 30, "-c", TINY, "-tr", TRAINER, "-f", 0, "--labels", LV)
    command("conemos", "predict", "-i", images, "-o", base / "lv", *queried, *FAST)
    predicted = {file.name: read_nifti(file) for file in (base / "lv").glob("*.nii.gz")}
    assert len(predicted) == 7
    assert set(np.unique(np.concatenate([a.ravel() for a in predicted.values()]))) == {0, 3}

    command("conemos", "complete", "-m", model, "-d", 30, "-o", "Dataset031_HeartComplete", *FAST)
    plan(base, 31, "Dataset031_HeartComplete")
    command("nnUNetv2_train", 31, TINY, 0, "-tr", "nnUNetTrainer_1epoch", "-device", "cpu")

    command("conemos", "export", "-m", model, "--label", LV, "-o", base / "stock_lv")
    predict_without_the_plugin(base / "stock_lv", images, base / "lv_without", *FAST)
    for name, ours in predicted.items():
        theirs = read_nifti(base / "lv_without" / name)
        assert np.mean(theirs != (ours == 3)) < 1e-5, "equal except at exact ties"
