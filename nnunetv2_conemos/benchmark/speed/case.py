"""Predict one whole case from file to file, in a process of its own that measures time and memory.

    python -m nnunetv2_conemos.benchmark.speed.case REPORT MODEL IMAGES OUTPUT DEVICE

Reading, preprocessing, tiles, resampling and writing run one after another in this process, without mirroring, so that
its peak is that of the prediction. `case_s` leaves out imports and the loading of the model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_conemos.benchmark.measure import peak_memory
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.inference.model_folder import read_model
from nnunetv2_conemos.inference.predictor import Inference, make_predictor, predict_files
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.text_files import read_object


def predict_case(model: Path, images: Path, output: Path, device: str) -> dict[str, Any]:
    """Predict the images of a folder; return case_s, case_mib of the process and, on a GPU, case_gpu_mib."""
    register_trainers()
    how = Inference(("all",), device=device, mirroring=False, preprocessing=0, export=0)
    predictor = load(model, how)
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    predict_files(predictor, how, str(images), str(output), False)
    seconds = time.perf_counter() - start
    measured = {"case_s": seconds, "case_mib": peak_memory("case", "cpu").get("case_peak_mib")}
    if device == "cuda":
        measured["case_gpu_mib"] = peak_memory("case", "cuda")["case_peak_mib"]
    return measured


def load(model: Path, how: Inference) -> nnUNetPredictor:
    """Load the predictor of a model of this package, or of a stock one."""
    if PLANS_KEY in read_object(model / "plans.json"):
        return make_predictor(read_model(model), how)
    predictor = nnUNetPredictor(use_mirroring=how.mirroring, device=torch.device(how.device), allow_tqdm=False)
    folds: Any = tuple(how.folds or ())
    predictor.initialize_from_trained_model_folder(str(model), folds, how.checkpoint)
    return predictor


def words(report: Path, model: Path, images: Path, output: Path, device: str) -> list[str]:
    """Return the command that runs this module."""
    return [
        sys.executable,
        "-m",
        "nnunetv2_conemos.benchmark.speed.case",
        *map(str, (report, model, images, output)),
        device,
    ]


def main(report: str, model: str, images: str, output: str, device: str) -> None:
    write_json(Path(report), predict_case(Path(model), Path(images), Path(output), device))


if __name__ == "__main__":
    main(*sys.argv[1:])
