"""Charts of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from nnunetv2_conemos.benchmark.curves import Curves, Length
from nnunetv2_conemos.benchmark.results import Results

PANELS = {
    "step_s": "training: s per step",
    "train_peak_mib": "training: peak memory, MiB",
    "parameters": "parameters",
    "predict_s": "prediction: s per case",
}


def colours(arms: Sequence[str]) -> Mapping[str, tuple[float, float, float]]:
    """Return a colour for each arm, the same in every figure."""
    return dict(zip(arms, sns.color_palette("colorblind" if len(arms) <= 10 else "husl", len(arms)), strict=True))


def names(results: Results) -> list[str]:
    return [arm.name for arm in results.arms]


def save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=130, format="png")


@rc_context({"text.parse_math": False})  # a name may hold $
def draw_dice(results: Results, file: Path) -> None:
    """Draw the mean Dice of each label and arm, with 95 % intervals over cases."""
    table = results.per_label.copy()
    table["mean"] = results.means["dice"]
    figure = Figure(figsize=(min(24.0, 3 + 0.16 * len(table) * len(table.columns) + 0.5 * len(table.columns)), 4.8))
    axes, palette = figure.subplots(), colours(names(results))
    for place, (arm, row) in enumerate(table.iterrows()):
        offset = (place - (len(table) - 1) / 2) * 0.8 / len(table)
        mean = np.array([value.mean for value in row])
        spread = np.nan_to_num(np.array([[v.mean - v.low, v.high - v.mean] for v in row]).T.clip(0))
        at = np.arange(len(row)) + offset
        axes.errorbar(at, mean, yerr=spread, fmt="o", ms=4, lw=1.2, color=palette[str(arm)], label=str(arm))
    axes.set(ylabel="Dice", ylim=(-0.02, 1.02), xticks=range(len(table.columns)))
    axes.set_xticklabels(table.columns, rotation=20, ha="right")
    for edge in range(len(table.columns) - 1):
        axes.axvline(edge + 0.5, color="0.9", lw=1, zorder=0)
    legend_below(figure, axes)
    save(figure, file)


def legend_below(figure: Figure, axes: Axes) -> None:
    """Draw one legend for all panels, in as many columns as fit; `axes`: a panel that shows all arms."""
    for panel in figure.axes:
        panel.grid(axis="y", alpha=0.3)
        sns.despine(ax=panel)
    figure.set_layout_engine("constrained")
    handles, texts = axes.get_legend_handles_labels()
    widest = 0.7 + 0.09 * max(map(len, texts))  # approximately, in inches
    columns = max(1, min(4, int(figure.get_figwidth() / widest)))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False)


@rc_context({"text.parse_math": False})  # a name may hold $
def draw_annotated(results: Results, annotated: Mapping[str, int], file: Path) -> None:
    """Draw the Dice of each label against the number of training cases that are annotated for it."""
    figure = Figure(figsize=(9, 5.4))
    axes, palette = figure.subplots(), colours(names(results))
    labels = sorted(results.labels, key=lambda label: annotated[label])
    for arm, row in results.per_label.to_dict("index").items():
        dice = [row[label].mean for label in labels]
        axes.plot([annotated[label] for label in labels], dice, "o-", color=palette[str(arm)], label=str(arm), ms=4)
    for number in sorted({annotated[label] for label in labels}):
        text = ", ".join(label for label in labels if annotated[label] == number)
        axes.annotate(text, (number, 1.0), rotation=90, ha="right", va="top", fontsize="x-small", color="0.5")
    axes.set(xlabel="annotated cases of the dataset", ylabel="Dice", ylim=(-0.02, 1.02))
    legend_below(figure, axes)
    save(figure, file)


@rc_context({"text.parse_math": False})  # a name may hold $
def draw_costs(results: Results, file: Path) -> None:
    """Draw the costs of each arm, one panel per cost."""
    costs, palette = results.costs(), colours(names(results))
    panels = [name for name in PANELS if costs[name].notna().to_numpy().any()]
    figure = Figure(figsize=(3.6 * len(panels) + 2, 1.2 + 0.32 * len(costs)), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        bars = axes.barh(costs.index, costs[name], color=[palette[arm] for arm in costs.index])
        axes.bar_label(
            bars, fmt="{:,.0f}" if name in ("parameters", "train_peak_mib") else "{:.3g}", fontsize="small", padding=2
        )
        axes.set_xticks([])
        axes.set_title(PANELS[name], fontsize="medium")
        axes.margins(x=0.2)
        axes.invert_yaxis() if axes is figure.axes[0] else None
        sns.despine(ax=axes, bottom=True)
    save(figure, file)


@rc_context({"text.parse_math": False})  # a name may hold $
def draw_curves(curves: Curves, file: Path) -> None:
    """Draw mean Dice against steps and against minutes; the band holds all trainings of an arm."""
    timed = not any(math.isnan(point.minutes) for points in curves.values() for point in points)
    lengths: dict[Length, str] = {"steps": "steps of all networks of an arm"}
    if timed:
        lengths["minutes"] = "minutes of training"
    figure = Figure(figsize=(6 * len(lengths) + 1, 5.4))
    panels, palette = np.atleast_1d(figure.subplots(1, len(lengths), sharey=True)), colours(list(curves))
    for axes, (length, title) in zip(panels, lengths.items(), strict=True):
        for arm, points in curves.items():
            at = [getattr(point, length) for point in points]
            low, high = (list(map(of, (point.dice for point in points))) for of in (min, max))
            axes.fill_between(at, low, high, color=palette[arm], alpha=0.15, lw=0)
            axes.plot(at, [point.mean for point in points], "o-", ms=4, lw=1.2, color=palette[arm], label=arm)
        axes.set(xlabel=title, xscale="log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panels[0].set_ylabel("mean Dice")
    legend_below(figure, panels[0])
    save(figure, file)


def draw_against_k(costs: pd.DataFrame, file: Path) -> None:
    """Draw the seconds of a training step, and of the prediction of a patch, against the number of labels."""
    costs = costs.dropna(how="all", subset=["step_s", "predict_s"])
    figure = Figure(figsize=(10, 4.8))
    palette = colours(list(costs["trainer"].unique()))
    panels = {"step_s": "training step, s", "predict_s": "prediction of a patch, s"}
    for axes, (column, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for trainer, rows in costs.groupby("trainer", sort=False):
            axes.plot(rows["labels"], rows[column], "o-", ms=4, lw=1.2, color=palette[str(trainer)], label=str(trainer))
        axes.set(xlabel="labels", ylabel=title, ylim=(0, None))
    legend_below(figure, figure.axes[0])
    save(figure, file)
