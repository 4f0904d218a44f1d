"""How scores and rankings are shown: printed tables and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.evaluation.metrics import BOTH_EMPTY, HD95_UNDEFINED, STATUSES, metrics_of, summarise

LEADING = 8  # candidates of a ranking that are printed per label
CAPTION = "one empty: Dice and NSD are 0, no HD95. both empty: not counted."


def print_scores(scores: pd.DataFrame, labels: Sequence[str], tolerance: float) -> None:
    """Print a section per source with its annotated labels, then all sources together and the mean over labels."""
    table = Table("label", box=box.SIMPLE, collapse_padding=True, pad_edge=False, caption=CAPTION)
    metrics = ("Dice", f"NSD\n{tolerance:g} mm", "HD95\nmm", "slice\nDice")[: len(metrics_of(scores))]
    for column in (*metrics, "pairs", "one\nempty", "both\nempty"):
        table.add_column(column, justify="right", no_wrap=True)
    by_source = [(str(name), rows) for name, rows in scores.groupby("source", sort=False)]
    for name, rows in by_source if len(by_source) > 1 else []:
        _add_section(table, name, summarise(rows, [label for label in labels if label in set(rows["label"])]))
    summary = summarise(scores, labels)
    _add_section(table, "all sources", summary)
    table.add_row("mean over labels", *map(number, summary[metrics_of(summary)].mean()), style="bold")
    Console().print(table)


def _add_section(table: Table, heading: str, summary: pd.DataFrame) -> None:
    table.add_row(escape(heading), style="bold")
    for label, row in summary.iterrows():
        counts = (row[STATUSES].sum(), row[HD95_UNDEFINED], row[BOTH_EMPTY])
        table.add_row(
            f"  {escape(str(label))}", *map(number, row[metrics_of(summary)]), *(f"{count:.0f}" for count in counts)
        )
    table.add_section()


def print_ranking(dice: pd.DataFrame) -> None:
    """Print candidates by rank, then the leading ones per label. `dice`: a row per label, a column per candidate."""
    ranking = Table("rank", "model", "Dice", box=box.SIMPLE, title="Dice on annotated (case, label) pairs")
    for place, (name, values) in enumerate(dice.items(), start=1):
        ranking.add_row(str(place), escape(str(name)), number(float(values.mean())))
    leading = dice.iloc[:, :LEADING]
    per_label = Table("label", *(f"# {place}" for place in range(1, leading.shape[1] + 1)), box=box.SIMPLE)
    for label, values in leading.iterrows():
        per_label.add_row(escape(str(label)), *map(number, values))
    console = Console()
    console.print(ranking)
    console.print(per_label)


def number(value: float) -> str:
    """Three decimals, or a dash where there is no value."""
    return "-" if pd.isna(value) else f"{value:.3f}"


def draw_dice(scores: pd.DataFrame, labels: Sequence[str], file: Path) -> None:
    """Write a PNG: Dice of every counted pair per label (their number in brackets), boxes and points by source."""
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


def draw_differences(differences: pd.DataFrame, reference: str, file: Path) -> None:
    """Write a PNG: difference of every case to a reference, per label and model, with means and their intervals.

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
