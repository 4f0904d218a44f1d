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
from paths import ROOT
from phantoms import PHANTOM
from programs import command, environment

from nnunetv2_conemos.doorway import VARIABLE

SHORT, TINY = "ShortConditionalFiLMTrainer", "tiny"


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


def train_interrupted(trainer: str, epoch: int, *words: object) -> None:
    """Start a training, and kill it as soon as this epoch begins: the epochs before it have left checkpoints."""
    fold = Path(nnUNet_results) / PHANTOM / f"{trainer}__nnUNetPlans__{TINY}" / "fold_0"
    process = subprocess.Popen(
        list(map(str, words)),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if any(f"Epoch {epoch}" in log.read_text() for log in fold.glob("training_log_*.txt")):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert (fold / "checkpoint_best.pth").exists(), "training ended before its first checkpoint"


def plan_train_interrupt_resume_predict_evaluate_and_rank(phantom: Path, base: Path, trainer: str) -> dict:
    """Returns the evaluation of the test cases."""
    command("conemos", "check", PHANTOM)
    command("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "3d_fullres", "-npfp", 1, "-np", 1)
    add_tiny(base, TINY, "3d_fullres")
    training = ("nnUNetv2_train", "901", TINY, "0", "-tr", trainer, "-device", "cpu", "--npz")
    train_interrupted(trainer, 2, *training)
    resumed = command(*training, "--c")
    epochs = [int(line.split()[-1]) for line in resumed.splitlines() if " Epoch " in line and "time" not in line]
    assert epochs[0] in (1, 2), "resumed where it stopped"

    model = base / "nnUNet_results" / PHANTOM / f"{trainer}__nnUNetPlans__{TINY}"
    validation = model / "fold_0" / "validation"
    annotated = json.loads((validation / "summary.json").read_text())["metric_per_case"]
    everything = json.loads((validation / "summary_all_labels.json").read_text())["metric_per_case"]
    assert {len(case["metrics"]) for case in everything} == {4}
    assert {len(case["metrics"]) for case in annotated} <= {1, 2}

    predictions = predict(phantom / "imagesTs", base / "predictions", TINY, trainer)
    command("conemos", "evaluate", phantom / "labelsTs", predictions, "--complete", "-np", 1, "--figure")
    assert (predictions / "evaluation.png").stat().st_size > 1000
    ranked = command("conemos", "best", PHANTOM, "-c", TINY, "-f", 0)
    assert f"-tr {trainer} -c {TINY}" in ranked
    return json.loads((predictions / "evaluation.json").read_text())


def test_plan_train_interrupt_resume_predict_evaluate_and_rank(phantom, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(ROOT / "tests" / "trainers"))
    scores = plan_train_interrupt_resume_predict_evaluate_and_rank(phantom, tmp_path, SHORT)
    assert scores["cases"] == 2
    assert set(scores["per_label"]) == {"liver", "spleen", "stomach", "gallbladder"}


@pytest.mark.slow
def test_the_same_chain_learns(phantom, tmp_path):
    scores = plan_train_interrupt_resume_predict_evaluate_and_rank(phantom, tmp_path, "ConditionalFiLMTrainer_5epochs")
    assert scores["mean"]["dice"] > 0.3, scores["mean"]


def predict(images: Path, output: Path, configuration: str, trainer: str, *more: object) -> Path:
    words = ("nnUNetv2_predict", "-i", images, "-o", output, "-d", 901, "-c", configuration, "-tr", trainer)
    command(*words, "-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0, *more)
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
