"""Measure a training step and a prediction against the number of labels K: networks of the plans on random patches.

`python -m nnunetv2_conemos.benchmark.scaling OUTPUT.csv PLANS.json CONFIGURATION CHANNELS DEVICE TRAINER...`
Deep supervision is left out, so that only networks and losses are compared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.records import QueriedLabels, Query, to_truth
from nnunetv2_conemos.text_files import read_object
from nnunetv2_conemos.training.sampling import queried_labels
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

NUMBERS = (2, 5, 10, 20, 40)
SECONDS = 2.0  # for each network, in rounds over all of them
ROUNDS = 3  # at least
Work = Callable[[], None]


class Batch(NamedTuple):
    """Random images [B,M,*S] and label maps [B,1,*S] with K labels, of a configuration of the plans."""

    image: Tensor
    target: Tensor
    labels: int
    configuration: ConfigurationManager


def costs_against_k(
    plans: dict[str, Any], configuration: str, channels: int, device: str, trainers: Sequence[str]
) -> pd.DataFrame:
    """Return columns trainer, labels, step_s, predict_s (one patch); empty where a method rejects that many labels.

    Each time is the fastest of several calls. The trainers take turns, so that other load on the machine affects all
    alike. Trainers that learn from unlabelled cases have no `step_s`: their steps need more than random patches.
    """
    manager = PlansManager({key: value for key, value in plans.items() if key != PLANS_KEY})
    chosen = manager.get_configuration(configuration)
    torch.manual_seed(0)
    image = torch.randn(chosen.batch_size, channels, *chosen.patch_size, device=device)
    measured: dict[tuple[str, int], dict[str, float]] = {}
    for labels in NUMBERS:
        print(f"costs with {labels} labels", flush=True)
        batch = Batch(image, torch.randint_like(image[:, :1], labels + 1).long(), labels, chosen)
        work: dict[tuple[str, str], Work] = {}
        for name in trainers:
            trainer = recursive_find_trainer_class_by_name(name)
            try:
                network = trainer.build_network_architecture(manager, chosen, channels, labels + 1, False)
            except (NotImplementedError, ValueError):
                continue
            work |= {(name, what): call for what, call in works(trainer, network.to(device), batch).items()}
        for (name, what), fastest in seconds(work, device).items():
            measured.setdefault((name, labels), {})[what] = fastest
    keys = [(name, labels) for name in trainers for labels in NUMBERS]
    rows = [{"trainer": name, "labels": labels, **measured.get((name, labels), {})} for name, labels in keys]
    return pd.DataFrame(rows, columns=pd.Index(["trainer", "labels", "step_s", "predict_s"]))


def works(trainer: type[nnUNetTrainer], network: nn.Module, batch: Batch) -> dict[str, Work]:
    """Return column -> function to time: a training step (forward, loss, backward), the prediction of one patch."""
    inputs, loss = input_and_loss(trainer, batch)
    device = batch.image.device.type

    def step() -> None:
        network.train()
        with torch.autocast(device, enabled=device == "cuda"):
            loss(network(inputs)).backward()
        network.zero_grad(set_to_none=True)

    def predict() -> None:
        network.eval()
        with torch.no_grad(), torch.autocast(device, enabled=device == "cuda"):
            network(batch.image[:1])

    trained = {} if getattr(trainer, "learns_from_unlabelled", False) else {"step_s": step}
    return {**trained, "predict_s": predict}


def input_and_loss(trainer: type[nnUNetTrainer], batch: Batch) -> tuple[Query | Tensor, Callable[[Tensor], Tensor]]:
    """Return the network's input in a training step, and the loss of its output; all labels are annotated."""
    image, target, labels, configuration = batch
    if not issubclass(trainer, PartialLabelTrainer):
        dice: dict[str, Any] = {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}
        dice_class: Any = MemoryEfficientSoftDiceLoss
        stock = DC_and_CE_loss(dice, {}, dice_class=dice_class)
        return image, lambda logits: stock(logits, target)
    names = {"background": 0, **{f"label {k}": k for k in range(1, labels + 1)}}
    cases = [f"case{number}" for number in range(len(image))]
    table, sampler = SourceTable.from_dataset_json({"labels": names}, cases), trainer.method.sampler
    drawn = np.random.default_rng(0).choice(sampler.identifiers(table, cases), len(image))
    queried = QueriedLabels(*(tensor.to(image.device) for tensor in queried_labels(sampler, drawn, table)))
    ours, truth = trainer.method.loss(configuration, False), to_truth(target, queried, None)
    return Query(image, queried.labels, queried.modality), lambda logits: ours(logits, truth)


def seconds(work: Mapping[Any, Work], device: str) -> dict[Any, float]:
    """Return the seconds of the fastest call of each; they take turns, and the first round does not count."""
    rounds: list[dict[Any, float]] = []
    start = time.perf_counter()
    while len(rounds) <= ROUNDS or time.perf_counter() - start < SECONDS * len(work):
        rounds.append({name: timed(call, device) for name, call in work.items()})
    return {name: min(times[name] for times in rounds[1:]) for name in work}


def timed(call: Work, device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(output: str, plans: str, configuration: str, channels: str, device: str, *trainers: str) -> None:
    costs = costs_against_k(read_object(Path(plans)), configuration, int(channels), device, trainers)
    write_aside(Path(output), lambda file: costs.to_csv(file, index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
