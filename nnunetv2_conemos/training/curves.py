"""Log and draw further numbers of training steps, averaged over tenths of an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import distributed as dist

from nnunetv2_conemos.files import write_aside

TENTHS = 10  # points of a curve in each epoch


def within_epochs(name: str) -> str:
    """Return the key of a curve in nnU-Net's log: pairs of epochs done and the mean since the previous pair."""
    return f"{name}, within epochs"


def tenths_of_epoch(outputs: Sequence[Mapping[str, Any]], names: Sequence[str], ddp: bool) -> dict[str, list[float]]:
    """Average numbers of training steps over tenths of an epoch, and over all processes; NaN without any."""
    steps = np.array([[output.get(name, np.nan) for name in names] for output in outputs])
    tenths = np.array([part.mean(0) for part in np.array_split(steps, min(TENTHS, len(steps)))])
    if ddp:
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, tenths)
        tenths = np.mean(gathered, axis=0)
    return dict(zip(names, tenths.T.tolist(), strict=True))


def log_curves(logger: Any, tenths: Mapping[str, Sequence[float]], epoch: int) -> dict[str, float]:
    """Add the tenths of an epoch to nnU-Net's log, which checkpoints carry; return the mean of each over the epoch."""
    curves = logger.local_logger.my_fantastic_logging
    means = {name: float(np.mean(values)) for name, values in tenths.items()}
    for name, values in tenths.items():
        curve = curves.setdefault(name, [])
        curve += [np.nan] * (epoch - len(curve))
        logger.log(name, means[name], epoch)
        finer = curves.setdefault(within_epochs(name), [])
        at = epoch + np.arange(1, len(values) + 1) / len(values)
        finer += zip(at.tolist(), values, strict=True)
    return means


def draw_logged(logger: Any, names: Iterable[str], file: Path) -> None:
    """Draw what `log_curves` has logged so far."""
    curves = logger.local_logger.my_fantastic_logging
    draw_curves({name: curves[within_epochs(name)] for name in names}, file)


def draw_curves(curves: Mapping[str, Iterable[tuple[float, float]]], file: Path) -> None:
    """Draw one panel per number, against the number of epochs done."""
    figure = Figure(figsize=(6, 2.2 * len(curves)), layout="constrained")
    for axes, (name, pairs) in zip(figure.subplots(len(curves), 1, squeeze=False)[:, 0], curves.items(), strict=True):
        axes.plot(*zip(*pairs, strict=True), "o-", ms=3)
        axes.set(xlabel="epochs done", ylabel=name, xlim=(0, None))
    write_aside(file, lambda aside: figure.savefig(aside, dpi=110, format="png"))
