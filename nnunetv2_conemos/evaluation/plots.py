"""Figures of evaluations and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib import rc_context


@rc_context({"text.parse_math": False})  # a name may hold $
def draw_dice(scores: pd.DataFrame, labels: Sequence[str], file: Path) -> None:
    """Draw the Dice of every counted pair per label (with their number), boxes and points by source, as PNG."""
    import seaborn as sns  # takes seconds to import, and most evaluations draw nothing
    from matplotlib.figure import Figure

    counted = scores.dropna(subset="dice")
    sizes = counted["label"].value_counts()
    order = [label for label in labels if label in sizes]
    sources = list(counted["source"].unique())
    apart = len(sources) <= 4  # with more, a box per source would be too narrow to read
    width = min(40.0, 3 + len(order) * (0.5 * max(2, len(sources)) if apart else 1))
    figure = Figure(figsize=(width, 4.5), layout="constrained", dpi=150)
    axes = figure.subplots()
    where = {"x": "label", "y": "dice", "order": order, "ax": axes}
    colours = {"hue": "source", "hue_order": sources, "palette": "colorblind" if len(sources) <= 10 else "husl"}
    boxes = {**where, **(colours if apart else {"color": "0.8"}), "fliersize": 0, "boxprops": {"alpha": 0.4}}
    sns.boxplot(counted, **boxes, legend=False)
    sns.stripplot(counted, **where, **colours, dodge=apart and len(sources) > 1, size=3)
    axes.set(xlabel="", ylabel="Dice", ylim=(-0.02, 1.02))
    axes.set_xticks(range(len(order)), [f"{label} ({sizes[label]})" for label in order], rotation=30, ha="right")
    axes.grid(axis="y", alpha=0.3)
    if sources:
        sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), frameon=False, title="source")
    figure.savefig(file, format="png")


@rc_context({"text.parse_math": False})  # a name may hold $
def draw_differences(differences: pd.DataFrame, reference: str, file: Path) -> None:
    """Draw the difference of every case to a reference, per label and model, with means and intervals, as PNG.

    `differences`: columns case, label, model, difference.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    models, labels = list(differences["model"].unique()), list(differences["label"].unique())
    figure = Figure(
        figsize=(min(40.0, 3 + len(labels) * (0.4 + 0.4 * len(models))), 4.5), layout="constrained", dpi=150
    )
    axes = figure.subplots()
    where = {"x": "label", "y": "difference", "hue": "model", "order": labels, "hue_order": models, "ax": axes}
    sns.stripplot(differences, **where, dodge=True, size=3, alpha=0.5, palette="colorblind", legend=False)
    means = {"dodge": 0.8 - 0.8 / len(models) if len(models) > 1 else False, "errorbar": ("ci", 95), "seed": 0}
    sns.pointplot(differences, **where, **means, palette="colorblind", linestyle="none", marker="_", markersize=14)
    axes.axhline(0, color="0.4", lw=1, zorder=0)
    axes.set(xlabel="", ylabel=f"difference to {reference}")
    axes.tick_params(axis="x", rotation=30)
    axes.grid(axis="y", alpha=0.3)
    sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), frameon=False, title="")
    figure.savefig(file, format="png")
