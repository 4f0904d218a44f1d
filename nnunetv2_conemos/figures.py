"""What a reader sees of scores: means, a printed table, a picture.

Scores are a long table with one row per annotated (case, label): case, source, label, the METRICS and a status.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

METRICS = ["dice", "nsd", "hd95_mm"]
SCORED, PREDICTION_EMPTY, REFERENCE_EMPTY, BOTH_EMPTY = STATUSES = [
    "scored",
    "prediction empty",
    "reference empty",
    "both empty",
]
LEADING = 8  # candidates of a ranking that are printed per label
HD95_UNDEFINED = "hd95 undefined"
CAPTION = "mean: over labels. one empty: Dice and NSD 0, no HD95. both empty: not counted."


def summarise(scores: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """One row per label, in the order of `labels`: means over cases (NaN without a value), and pairs per status."""
    means = pd.DataFrame(scores.groupby("label")[METRICS].mean(), index=list(labels))
    counts = pd.DataFrame(pd.crosstab(scores["label"], scores["status"]), index=list(labels), columns=STATUSES)
    counts = counts.fillna(0).astype(int)
    counts[HD95_UNDEFINED] = counts[PREDICTION_EMPTY] + counts[REFERENCE_EMPTY]
    return means.join(counts)


def summary_json(scores: pd.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """Means over labels, per label, and the same per source; what has no value is None."""
    sources = {str(name): _plain(rows, labels) for name, rows in scores.groupby("source", sort=False)}
    return {**_plain(scores, labels), "per_source": sources}


def _plain(scores: pd.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    summary = summarise(scores, labels)
    mean, per_label = (
        json.loads(str(frame.to_json(orient="index", double_precision=15)))
        for frame in (summary[METRICS].mean().to_frame("mean").T, summary)
    )
    return {"cases": scores["case"].nunique(), **mean, "per_label": per_label}


def print_scores(scores: pd.DataFrame, labels: Sequence[str], tolerance: float) -> None:
    """Print a section per source with its annotated labels, then all sources together and the mean over labels."""
    table = Table(
        "source",
        "label",
        box=box.SIMPLE,
        title="Annotated (case, label) pairs",
        caption=CAPTION,
        caption_justify="left",
    )
    for column in ("Dice", f"NSD {tolerance:g} mm", "HD95 mm", "pairs", "one empty", "both empty"):
        table.add_column(column, justify="right")
    by_source = [(str(name), rows) for name, rows in scores.groupby("source", sort=False)]
    for name, rows in by_source if len(by_source) > 1 else []:
        _add_section(table, name, summarise(rows, [label for label in labels if label in set(rows["label"])]))
    summary = summarise(scores, labels)
    _add_section(table, "all", summary)
    table.add_row("all", "mean", *map(number, summary[METRICS].mean()), style="bold")
    Console().print(table)


def _add_section(table: Table, source: str, summary: pd.DataFrame) -> None:
    for label, row in summary.iterrows():
        counts = (row[STATUSES].sum(), row[HD95_UNDEFINED], row[BOTH_EMPTY])
        table.add_row(
            escape(source), escape(str(label)), *map(number, row[METRICS]), *(f"{count:.0f}" for count in counts)
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
    width = min(40.0, 3 + len(order) * max(1, 0.4 * len(sources)))
    figure = Figure(figsize=(width, 4.5), layout="constrained", dpi=150)
    axes = figure.subplots()
    palette = "colorblind" if len(sources) <= 10 else "husl"
    common = {"x": "label", "y": "dice", "hue": "source", "order": order, "hue_order": sources, "palette": palette}
    sns.boxplot(counted, **common, ax=axes, fliersize=0, boxprops={"alpha": 0.4}, legend=False)
    sns.stripplot(counted, **common, ax=axes, dodge=len(sources) > 1, size=3)
    axes.set(xlabel="", ylabel="Dice", ylim=(-0.02, 1.02))
    axes.set_xticks(range(len(order)), [f"{label} ({sizes[label]})" for label in order], rotation=30, ha="right")
    axes.grid(axis="y", alpha=0.3)
    if sources:
        sns.move_legend(axes, "upper left", bbox_to_anchor=(1, 1), frameon=False, title="source")
    figure.savefig(file, format="png")
