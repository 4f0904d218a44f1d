"""From the clinic and back by the real commands: import, check, plan, train, predict, convert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import command
from raw_worlds import read_nifti

from nnunetv2_conemos.datasets.folders import raw_cases

pytestmark = pytest.mark.slow
NAME, TRAINER, TINY = "Dataset910_Clinic", "ConditionalFiLMTrainer_5epochs", "tiny"


def add_tiny(base: Path) -> None:
    """Add a CPU-sized configuration beside the planned one."""
    file = base / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    architecture = plans["configurations"]["3d_fullres"]["architecture"]
    kwargs = architecture["arch_kwargs"]
    kwargs["features_per_stage"] = [4 * 2**i for i in range(kwargs["n_stages"])]
    plans["configurations"][TINY] = {"inherits_from": "3d_fullres", "batch_size": 2, "architecture": architecture}
    file.write_text(json.dumps(plans))


def clinic(phantom: Path, folder: Path) -> Path:
    """The phantom as a folder of images and masks of what is annotated for each patient."""
    command("conemos", "convert", phantom, "-o", folder, "--as", "masks", "-np", 1)
    for case, files in raw_cases(phantom).items():
        (folder / case / "ct.nii.gz").symlink_to(files["images"][0])
    return folder


def test_import_check_plan_train_predict_and_back(phantom, tmp_path):
    command("conemos", "import", clinic(phantom, tmp_path / "clinic"), "-o", NAME, "-np", 2)
    command("conemos", "check", NAME, "-np", 1)
    command("nnUNetv2_plan_and_preprocess", "-d", 910, "-c", "3d_fullres", "-npfp", 1, "-np", 1)
    add_tiny(tmp_path)
    command("nnUNetv2_train", 910, TINY, "all", "-tr", TRAINER, "-device", "cpu")
    command("conemos", "import", phantom / "imagesTs", "-o", tmp_path / "images", "--images-only", "-np", 1)
    predicted = ("nnUNetv2_predict", "-i", tmp_path / "images", "-o", tmp_path / "predictions", "-d", 910, "-c", TINY)
    command(*predicted, "-tr", TRAINER, "-f", "all", "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta")
    back = ("conemos", "convert", tmp_path / "predictions", "-o", tmp_path / "back", "--as", "masks", "-np", 1)
    command(*back, "--origins", tmp_path / "images" / "origins.csv")
    labels = json.loads((tmp_path / "nnUNet_raw" / NAME / "dataset.json").read_text())["labels"]
    files = sorted((tmp_path / "predictions").glob("*.nii.gz"))
    assert len(files) == 2
    for file in files:
        case, voxels = file.name.removesuffix(".nii.gz"), read_nifti(file)
        masks = tmp_path / "back" / case / "segmentations"
        assert {mask.name for mask in masks.iterdir()} == {f"{name}.nii.gz" for name in labels if labels[name]}
        for name in set(labels) - {"background"}:
            assert (read_nifti(masks / f"{name}.nii.gz") == (voxels == labels[name])).all()
    assert any(read_nifti(file).any() for file in files)
