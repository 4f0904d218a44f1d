"""Throughput of nnU-Net's loader, with augmentation, on a preprocessed dataset."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_conemos.benchmark.speed.arms import ALL, trainer_class
from nnunetv2_conemos.benchmark.speed.settings import SpeedSettings
from nnunetv2_conemos.benchmark.speed.world import nnunet_environment, plans_for
from nnunetv2_conemos.datasets.folders import dataset_name
from nnunetv2_conemos.errors import ConemosError
from nnunetv2_conemos.text_files import read_object

BATCHES = 20  # in each round; as many before the first one, which empty the queues


def measure_loaders(settings: SpeedSettings, folder: Path, report: Callable[[str], object]) -> pd.DataFrame:
    """Return columns arm, batches_per_s, loader_ratio and note: batches that nnU-Net's processes can hand over.

    Nothing else runs meanwhile, so they are an upper bound of the steps per second of a training.
    """
    name = dataset_name(str(settings.dataset))
    preprocessed = Path(nnUNet_preprocessed) / name
    plans, dataset_json = (read_object(preprocessed / file) for file in (f"{settings.plans}.json", "dataset.json"))
    rows = []
    with nnunet_environment(folder, False, ("nnUNet_results",)):
        for arm in settings.names:
            report(f"loader: {arm}")
            row: dict[str, Any] = {"arm": arm, "note": ""}
            try:
                trainer = trainer_class(arm)(
                    plans_for(plans, name), settings.configuration, ALL, dataset_json, torch.device(settings.device)
                )
                row["batches_per_s"] = batches_per_second(trainer, settings.rounds)
            except ConemosError as error:
                row["note"] = f"refused: {error}"
            rows.append(row)
    table = pd.DataFrame(rows, columns=pd.Index(["arm", "batches_per_s", "loader_ratio", "note"]))
    table["loader_ratio"] = table["batches_per_s"] / table["batches_per_s"].iloc[0]
    return table


def batches_per_second(trainer: Any, rounds: int) -> float:
    """Return the median over rounds of the batches that the trainer's loader hands over in a second."""
    trainer.initialize()
    training, validation = trainer.get_dataloaders()
    rates = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for _ in range(BATCHES):
            next(training)
        rates.append(BATCHES / (time.perf_counter() - start))
    for loader in (training, validation):
        if hasattr(loader, "_finish"):
            loader._finish()  # its processes
    return median(rates[1:])
