"""One training or prediction of nnU-Net in a process of its own, and what it cost.

`python -m nnunetv2_conemos.benchmark.measure REPORT SEED train ...` (or `predict ...`) takes the arguments of
nnUNetv2_train (nnUNetv2_predict). A training ends with its last epoch: nnU-Net's final validation is left out, for the
benchmark measures on test cases. A training that was interrupted goes on.

The seed sets the initial weights. nnU-Net draws patches in processes that it does not seed, so runs of one seed differ.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.inference.predictor import command_line


def train(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    for name in ("dataset", "configuration", "fold"):
        parser.add_argument(name)
    for name in ("-tr", "-p", "-device"):
        parser.add_argument(name, required=True)
    args = parser.parse_args(arguments)
    if args.device == "cuda":  # as nnUNetv2_train does
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(multiprocessing.cpu_count())
    device = torch.device(args.device)
    fold: Any = args.fold if args.fold == "all" else int(args.fold)
    trainer = get_trainer_from_args(args.dataset, args.configuration, fold, args.tr, args.p, device=device)
    remove_damaged(Path(str(trainer.output_folder)))
    maybe_load_checkpoint(trainer, True, False)
    idle = trainer.current_epoch >= trainer.num_epochs  # killed after its last epoch: no memory to be measured any more
    trainer.run_training()
    memory = {} if idle else peak_memory("train", device)
    return {"step_s": step_seconds(trainer), "parameters": parameters(trainer), **memory}


def remove_damaged(folder: Path) -> None:
    """Delete checkpoints that cannot be read, cut short by a kill while nnU-Net wrote them: another one goes on."""
    for file in folder.glob("checkpoint_*.pth"):
        try:
            torch.load(file, map_location="cpu", weights_only=False)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"{file} is damaged and deleted: {error}")
            file.unlink()


def step_seconds(trainer: nnUNetTrainer) -> float:
    """Median over epochs of an epoch's time by its training steps; its validation steps are included."""
    start, end = (
        np.array(trainer.logger.get_value(f"epoch_{which}_timestamps", step=None)) for which in ("start", "end")
    )
    return float(np.median(end - start)) / trainer.num_iterations_per_epoch


def parameters(trainer: nnUNetTrainer) -> int:
    assert trainer.network is not None
    return sum(parameter.numel() for parameter in trainer.network.parameters())


def predict(arguments: list[str]) -> dict[str, Any]:
    device = torch.device(arguments[arguments.index("-device") + 1])
    start = time.perf_counter()
    with command_line(["nnUNetv2_predict", *arguments]):
        predict_entry_point()
    return {"predict_s": time.perf_counter() - start, **peak_memory("predict", device)}


def peak_memory(what: str, device: torch.device) -> dict[str, float]:
    """On a GPU what torch allocated, else the process as a whole (imported libraries included); in MiB."""
    if device.type == "cuda":
        return {f"{what}_peak_mib": torch.cuda.max_memory_allocated(device) / 2**20}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 2**10
    return {f"{what}_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}


def main(report: str, seed: str, what: str, *arguments: str) -> None:
    random.seed(int(seed))
    np.random.seed(int(seed))
    torch.manual_seed(int(seed))
    costs = {"train": train, "predict": predict}[what](list(arguments))
    write_json(Path(report), costs)


if __name__ == "__main__":
    main(*sys.argv[1:])
