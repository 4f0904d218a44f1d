"""Scores: of one label in one case, their means, and how they are shown.

A table of scores is long, with one row per annotated (case, label): case, source, label, the METRICS and a status.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

METRICS = ["dice", "nsd", "hd95_mm"]
SCORED, PREDICTION_EMPTY, REFERENCE_EMPTY, BOTH_EMPTY = "scored", "prediction empty", "reference empty", "both empty"
STATUS = {
    (True, True): SCORED,
    (True, False): PREDICTION_EMPTY,
    (False, True): REFERENCE_EMPTY,
    (False, False): BOTH_EMPTY,
}  # (the reference holds the label, the prediction holds it)
STATUSES = list(STATUS.values())
LEADING = 8  # candidates of a ranking that are printed per label
HD95_UNDEFINED = "hd95 undefined"
CAPTION = "one empty: Dice and NSD are 0, no HD95. both empty: not counted."

Mask = Bool[np.ndarray, "*S"]


def pair_scores(reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float | None) -> dict[str, Any]:
    """Dice, NSD and HD95 (mm) of one label, NaN where undefined, and the status that says why."""
    status = STATUS[bool(reference.any()), bool(prediction.any())]
    if status == BOTH_EMPTY:
        return {"dice": np.nan, "nsd": np.nan, "hd95_mm": np.nan, "status": status}
    if status != SCORED:
        return {"dice": 0.0, "nsd": 0.0, "hd95_mm": np.nan, "status": status}
    dice = 2 * float(np.sum(reference & prediction)) / float(reference.sum() + prediction.sum())
    surface = (np.nan, np.nan) if tolerance is None else surface_scores(reference, prediction, spacing, tolerance)
    return {"dice": dice, "nsd": surface[0], "hd95_mm": surface[1], "status": status}


def surface_scores(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """NSD at a tolerance in mm, and HD95 in mm, of two masks [*S] that are not empty.

    NSD weighs surface elements by their area (on the subvoxel grid): with anisotropic voxels, counting them would
    favour the sides with small faces. HD95 is the larger of the two directed 95th percentiles.
    """
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # takes seconds to import

    y, y_pred = (torch.from_numpy(mask)[None, None] for mask in (reference, prediction))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)  # its own call
        nsd = compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True)
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing)
    return nsd.item(), hd95.item()


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
    table = Table("label", box=box.SIMPLE, collapse_padding=True, pad_edge=False, caption=CAPTION)
    for column in ("Dice", f"NSD {tolerance:g} mm", "HD95 mm", "pairs", "one empty", "both empty"):
        table.add_column(column, justify="right", no_wrap=True)
    by_source = [(str(name), rows) for name, rows in scores.groupby("source", sort=False)]
    for name, rows in by_source if len(by_source) > 1 else []:
        _add_section(table, name, summarise(rows, [label for label in labels if label in set(rows["label"])]))
    summary = summarise(scores, labels)
    _add_section(table, "all sources", summary)
    table.add_row("mean over labels", *map(number, summary[METRICS].mean()), style="bold")
    Console().print(table)


def _add_section(table: Table, heading: str, summary: pd.DataFrame) -> None:
    table.add_row(escape(heading), style="bold")
    for label, row in summary.iterrows():
        counts = (row[STATUSES].sum(), row[HD95_UNDEFINED], row[BOTH_EMPTY])
        table.add_row(f"  {escape(str(label))}", *map(number, row[METRICS]), *(f"{count:.0f}" for count in counts))
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
