"""The whole chain by the real commands: plan, train, interrupt, resume, predict, evaluate, rank."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import SimpleITK
from nnunetv2.paths import nnUNet_results
from phantoms import PHANTOM
from programs import command, environment

TRAINER, TINY = "ConditionalFiLMTrainer_5epochs", "tiny"


def add_tiny(base: Path, name: str, inherits: str, plans_name: str = "nnUNetPlans") -> None:
    """A CPU-sized configuration beside the planned one, as docs/how_to/troubleshooting.md shows it."""
    file = base / "nnUNet_preprocessed" / PHANTOM / f"{plans_name}.json"
    plans = json.loads(file.read_text())
    architecture = plans["configurations"][inherits]["architecture"]
    kwargs = architecture["arch_kwargs"]
    kwargs["features_per_stage"] = [4 * 2**i for i in range(kwargs["n_stages"])]
    plans["configurations"][name] = {
        "inherits_from": inherits,
        "batch_size": 2,
        "architecture": architecture,
    }
    file.write_text(json.dumps(plans))


def train_interrupted_after_an_epoch(*words: str) -> None:
    """Start training and press Ctrl-C once the first checkpoint is there."""
    checkpoint = Path(nnUNet_results) / PHANTOM / f"{TRAINER}__nnUNetPlans__{TINY}/fold_0/checkpoint_best.pth"
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(1)  # the file is being written when it appears
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.exists(), "training ended before its first checkpoint"


def test_plan_train_interrupt_resume_predict_evaluate_and_rank(phantom, tmp_path):
    command("conemos", "check", PHANTOM)
    command("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "3d_fullres", "-npfp", 1, "-np", 1)
    add_tiny(tmp_path, TINY, "3d_fullres")
    training = ("nnUNetv2_train", "901", TINY, "0", "-tr", TRAINER, "-device", "cpu", "--npz")
    train_interrupted_after_an_epoch(*training)
    resumed = command(*training, "--c")
    epochs = [line.split()[-1] for line in resumed.splitlines() if " Epoch " in line and "time" not in line]
    assert epochs[0] != "0", "resumed where it stopped"
    assert epochs[-1] == "4"

    model = tmp_path / "nnUNet_results" / PHANTOM / f"{TRAINER}__nnUNetPlans__{TINY}"
    validation = model / "fold_0" / "validation"
    annotated = json.loads((validation / "summary.json").read_text())["metric_per_case"]
    everything = json.loads((validation / "summary_all_labels.json").read_text())["metric_per_case"]
    assert {len(case["metrics"]) for case in everything} == {4}
    assert {len(case["metrics"]) for case in annotated} <= {1, 2}

    predictions = predict(phantom / "imagesTs", tmp_path / "predictions", TINY, TRAINER)
    command("conemos", "evaluate", phantom / "labelsTs", predictions, "--complete", "-np", 1, "--figure")
    scores = json.loads((predictions / "evaluation.json").read_text())
    assert scores["mean"]["dice"] > 0.3, scores["mean"]
    assert (predictions / "evaluation.png").stat().st_size > 1000
    ranked = command("conemos", "best", PHANTOM, "-c", TINY, "-f", 0)
    assert f"-tr {TRAINER} -c {TINY}" in ranked


def predict(images: Path, output: Path, configuration: str, trainer: str, *more: object) -> Path:
    words = ("nnUNetv2_predict", "-i", images, "-o", output, "-d", 901, "-c", configuration, "-tr", trainer)
    command(*words, "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1, *more)
    return output


@pytest.mark.slow
def test_residual_plans_2d_ensembles_model_folders_zips_and_pretrained_weights(phantom, tmp_path):
    quick, images = "ConditionalFiLMTrainer_1epoch", phantom / "imagesTs"
    command("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "2d", "3d_fullres", "-npfp", 1, "-np", 1, 1)
    add_tiny(tmp_path, "tiny2d", "2d")
    add_tiny(tmp_path, TINY, "3d_fullres")
    outputs = []
    for configuration in ("tiny2d", TINY):
        command("nnUNetv2_train", 901, configuration, 0, "-tr", quick, "-device", "cpu", "--npz")
        more = ("--save_probabilities", "--disable_tta")
        outputs.append(predict(images, tmp_path / configuration, configuration, quick, *more))
    command("nnUNetv2_ensemble", "-i", *outputs, "-o", tmp_path / "ensemble", "-np", 1)
    command("conemos", "evaluate", phantom / "labelsTs", tmp_path / "ensemble", "--complete", "-np", 1)
    command("conemos", "best", PHANTOM, "-f", 0)
    ranked = json.loads((tmp_path / "nnUNet_results" / PHANTOM / "conemos_best.json").read_text())["ranking"]
    assert sorted(len(entry["models"]) for entry in ranked) == [1, 1, 2], "both models and their ensemble"

    model = tmp_path / "nnUNet_results" / PHANTOM / f"{quick}__nnUNetPlans__{TINY}"
    folder = ("nnUNetv2_predict_from_modelfolder", "-i", images, "-o", tmp_path / "again", "-m", model)
    command(*folder, "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta")
    for file in sorted((tmp_path / "again").glob("*.nii.gz")):
        same = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / TINY / file.name)))
        assert (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) == same).all()
    zipped = tmp_path / "model.zip"
    command("nnUNetv2_export_model_to_zip", "-d", 901, "-o", zipped, "-c", TINY, "-tr", quick, "-f", 0)
    assert zipped.stat().st_size > 10_000

    start = tmp_path / "start.pth"
    command("conemos", "adapt", model / "fold_0/checkpoint_final.pth", "-d", 901, "-o", start, "-c", TINY, "-tr", quick)
    command("nnUNetv2_plan_and_preprocess", "-d", 901, "-pl", "nnUNetPlannerResEncM", "-c", "3d_fullres", "-np", 1)
    add_tiny(tmp_path, TINY, "3d_fullres", plans_name="nnUNetResEncUNetMPlans")
    command("nnUNetv2_train", 901, TINY, 0, "-tr", quick, "-p", "nnUNetResEncUNetMPlans", "-device", "cpu")
    command("nnUNetv2_train", 901, TINY, 1, "-tr", quick, "-device", "cpu", "-pretrained_weights", start)
