"""Train or predict with nnU-Net in a separate process, and measure the cost.

    python -m nnunetv2_conemos.benchmark.measure REPORT SEED train DATASET CONFIGURATION FOLD TRAINER PLANS DEVICE
    python -m nnunetv2_conemos.benchmark.measure REPORT SEED predict (the words of nnUNetv2_predict)

`networks` starts it; what it measured is written to REPORT, a JSON file. A training ends with its last epoch, without
nnU-Net's final validation: the benchmark measures on test cases. An interrupted training is resumed.

The seed sets the initial weights. nnU-Net samples patches in processes without a seed, so runs of one seed differ.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_conemos.benchmark.memory import process_peak
from nnunetv2_conemos.errors import ConemosError
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.training.checkpoints import load


def train(dataset: str, configuration: str, fold: str, trainer_name: str, plans: str, device: str) -> dict[str, Any]:
    """Train, or resume an interrupted training; return step_s, parameters and train_peak_mib."""
    set_threads(device)
    number: Any = fold if fold == "all" else int(fold)
    trainer = get_trainer_from_args(dataset, configuration, number, trainer_name, plans, device=torch.device(device))
    remove_damaged(Path(str(trainer.output_folder)))
    maybe_load_checkpoint(trainer, True, False)
    finished = trainer.current_epoch >= trainer.num_epochs  # killed after its last epoch: its memory is unknown
    trainer.run_training()
    memory = {} if finished else peak_memory("train", device)
    return {"step_s": step_seconds(trainer), "parameters": parameters(trainer), **memory}


def set_threads(device: str) -> None:
    """Set torch's threads as nnUNetv2_train does."""
    if device == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(multiprocessing.cpu_count())


def remove_damaged(folder: Path) -> None:
    """Delete checkpoints left incomplete when nnU-Net was killed while writing; training resumes from another one."""
    for file in folder.glob("checkpoint_*.pth"):
        try:
            load(file, mapped=True)
        except ConemosError as error:
            print(f"{file} is damaged and is deleted: {error}")
            file.unlink()


def step_seconds(trainer: nnUNetTrainer) -> float:
    """Return the median over epochs of the time of an epoch, validation included, divided by its training steps."""
    start, end = (
        np.array(trainer.logger.get_value(f"epoch_{which}_timestamps", step=None)) for which in ("start", "end")
    )
    return float(np.median(end - start)) / trainer.num_iterations_per_epoch


def parameters(trainer: nnUNetTrainer) -> int:
    assert trainer.network is not None
    return sum(parameter.numel() for parameter in trainer.network.parameters())


def predict(*words: str) -> dict[str, Any]:
    """Predict as nnUNetv2_predict does; return predict_s and predict_peak_mib."""
    start = time.perf_counter()
    with command_line(["nnUNetv2_predict", *words]):
        predict_entry_point()
    return {"predict_s": time.perf_counter() - start, **peak_memory("predict", words[words.index("-device") + 1])}


@contextmanager
def command_line(words: list[str]) -> Iterator[None]:
    """Set `sys.argv`, which nnU-Net's programs read, within the block."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def peak_memory(what: str, device: str) -> dict[str, float]:
    """Return the peak in MiB: on a GPU of what torch allocated, else of the whole process with its libraries."""
    if device == "cuda":
        return {f"{what}_peak_mib": torch.cuda.max_memory_allocated() / 2**20}
    peak = process_peak()
    return {} if peak is None else {f"{what}_peak_mib": peak}


def main(report: str, seed: str, what: str, *words: str) -> None:
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))
    costs = {"train": train, "predict": predict}[what](*words)
    write_json(Path(report), costs)


if __name__ == "__main__":
    main(*sys.argv[1:])
