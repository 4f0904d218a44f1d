"""Draw the share of confident pseudo-labels while a network learnt from unlabelled cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nnunetv2_conemos.benchmark.plots.charts import colours, legend_below, save
from nnunetv2_conemos.methods.unimos.trainer import CONFIDENT_SHARE
from nnunetv2_conemos.training.curves import within_epochs

Curve = list[tuple[float, float]]  # epochs done, share of voxels


def confident_shares(checkpoint: Mapping[str, Any]) -> Curve | None:
    """Read the share of unlabelled voxels above the confidence threshold; None for methods that do not log it."""
    curve = checkpoint["logging"].get(within_epochs(CONFIDENT_SHARE), [])
    return [point for point in curve if not np.isnan(point[1])] or None


def draw_confident(arms: Mapping[str, Curve], file: Path) -> None:
    """Draw the curve of each arm."""
    figure = Figure(figsize=(7, 4))
    axes, palette = figure.subplots(), colours(list(arms))
    for arm, curve in arms.items():
        axes.plot(*zip(*curve, strict=True), "o-", ms=3, lw=1.2, color=palette[arm], label=arm)
    axes.set(xlabel="epochs done", ylabel="share of voxels", xlim=(0, None), ylim=(-0.02, 1.02))
    legend_below(figure, axes)
    save(figure, file)
