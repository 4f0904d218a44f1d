"""What a training logs beside nnU-Net's curves, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from nnunetv2_conemos.datasets import write_aside


def draw_curves(curves: Mapping[str, Sequence[float]], file: Path) -> None:
    """One panel per number, over the epochs."""
    figure = Figure(figsize=(6, 2.2 * len(curves)), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(len(curves), 1, squeeze=False)[:, 0], curves.items(), strict=True):
        axes.plot(range(len(values)), values, "o-", ms=3)
        axes.set(xlabel="epoch", ylabel=name)
    write_aside(file, lambda aside: figure.savefig(aside, dpi=110, format="png"))
