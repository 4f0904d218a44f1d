"""Predict one whole case from file to file, in a process of its own that measures time and memory.

    python -m nnunetv2_conemos.benchmark.speed.case REPORT MODEL IMAGES OUTPUT DEVICE STEP_SIZE WAY

WAY is `conemos`, as `conemos predict` does, or `nnunet`, as nnUNetv2_predict does. Reading, preprocessing, tiles,
resampling and writing run one after another in this process, without mirroring, so that its peak is that of the
prediction. The time leaves out imports and the loading of the model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Literal

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_conemos.benchmark.measure import peak_memory
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.inference.inputs import cases_of
from nnunetv2_conemos.inference.model_folder import read_folder
from nnunetv2_conemos.inference.predictor import Inference, load_predictor, loaded, predict_files

Way = Literal["conemos", "nnunet"]


def predict_case(
    model: Path, images: Path, output: Path, device: str, step_size: float = 0.5, way: Way = "conemos"
) -> dict[str, Any]:
    """Predict the images of a folder; return seconds, cpu_s, mib of the process and, on a GPU, gpu_mib."""
    register_trainers()
    how = Inference(("all",), device=device, mirroring=False, preprocessing=0, export=0, step_size=step_size)
    predictor = load_predictor(model, how) if way == "conemos" else loaded(nnUNetPredictor, read_folder(model), how)
    dataset_json: Any = predictor.dataset_json
    cases = cases_of(images, dataset_json["file_ending"], list(dataset_json["channel_names"].values()))
    start, cpu = time.perf_counter(), time.process_time()
    predict_files(predictor, how, cases, [output / "case"])
    measured: dict[str, Any] = {"s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    measured["mib"] = peak_memory("case", "cpu").get("case_peak_mib")
    if device == "cuda":
        measured["gpu_mib"] = peak_memory("case", "cuda")["case_peak_mib"]
    return measured


def words(report: Path, model: Path, images: Path, output: Path, device: str, step_size: float, way: Way) -> list[str]:
    """Return the command that runs this module."""
    program = [sys.executable, "-m", "nnunetv2_conemos.benchmark.speed.case"]
    return [*program, *map(str, (report, model, images, output)), device, str(step_size), way]


def main(report: str, model: str, images: str, output: str, device: str, step_size: str, way: Way) -> None:
    measured = predict_case(Path(model), Path(images), Path(output), device, float(step_size), way)
    write_json(Path(report), measured)


if __name__ == "__main__":
    main(*sys.argv[1:])  # pyright: ignore
