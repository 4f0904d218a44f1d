"""What a training logs beside nnU-Net's curves, as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from nnunetv2_conemos.datasets import write_aside


def draw_curves(curves: Mapping[str, Iterable[tuple[float, float]]], file: Path) -> None:
    """One panel per number; each value at the number of epochs that were done."""
    figure = Figure(figsize=(6, 2.2 * len(curves)), layout="constrained")
    for axes, (name, pairs) in zip(figure.subplots(len(curves), 1, squeeze=False)[:, 0], curves.items(), strict=True):
        axes.plot(*zip(*pairs, strict=True), "o-", ms=3)
        axes.set(xlabel="epochs done", ylabel=name, xlim=(0, None))
    write_aside(file, lambda aside: figure.savefig(aside, dpi=110, format="png"))
