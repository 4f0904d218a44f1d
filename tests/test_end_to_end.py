"""The whole chain by the real commands: plan, train, interrupt, resume, predict, evaluate, rank."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PHANTOM
from nnunetv2.paths import nnUNet_results

from nnunetv2_conemos import env

TRAINER, TINY = "ConditionalFiLMTrainer_5epochs", "tiny"


def environment() -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "nnUNet_extTrainer": str(env.doorway_folder()),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "2",
        "nnUNet_compile": "f",
        "OMP_WAIT_POLICY": "passive",
    }


def command(*words: object) -> str:
    """Run one command; its output is part of the failure."""
    done = subprocess.run(list(map(str, words)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def add_tiny(base: Path, name: str, inherits: str, **changes: object) -> None:
    """A CPU-sized configuration beside the planned one, as docs/troubleshooting.md shows it."""
    file = base / "nnUNet_preprocessed" / PHANTOM / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    architecture = plans["configurations"][inherits]["architecture"]
    kwargs = architecture["arch_kwargs"]
    kwargs["features_per_stage"] = [4 * 2**i for i in range(kwargs["n_stages"])]
    plans["configurations"][name] = {
        "inherits_from": inherits,
        "batch_size": 2,
        "architecture": architecture,
        **changes,
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
    table = phantom / "annotated.json"
    sources = json.loads((phantom / "dataset.json").read_text())["sources"]
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

    predictions = tmp_path / "predictions"
    predict = ("nnUNetv2_predict", "-i", phantom / "imagesTs", "-o", predictions, "-d", 901, "-c", TINY)
    command(*predict, "-tr", TRAINER, "-f", 0, "-device", "cpu", "-npp", 1, "-nps", 1)
    command("conemos", "evaluate", phantom / "labelsTs", predictions, "--complete", "-np", 1, "--figure")
    scores = json.loads((predictions / "evaluation.json").read_text())
    print(json.dumps(scores, indent=1)[:2000])
    assert (predictions / "evaluation.png").stat().st_size > 1000
    assert table is not None
    assert sources is not None
    ranked = command("conemos", "best", PHANTOM, "-c", TINY, "-f", 0)
    assert f"-tr {TRAINER} -c {TINY}" in ranked


@pytest.mark.slow
def test_other_plans_dimensions_ensembles_and_zip(phantom, tmp_path):
    command("nnUNetv2_plan_and_preprocess", "-d", 901, "-c", "2d", "3d_fullres", "-npfp", 1, "-np", 1, 1)
    assert phantom.exists()
