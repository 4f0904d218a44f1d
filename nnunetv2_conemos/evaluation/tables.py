"""Scores, rankings and comparisons as tables for the terminal."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.evaluation.comparison import Comparison, corrected
from nnunetv2_conemos.evaluation.evaluate import Evaluation
from nnunetv2_conemos.evaluation.metrics import BOTH_EMPTY, HD95_UNDEFINED, STATUSES, metrics_of, summarise
from nnunetv2_conemos.evaluation.significance import p_value, shown

MAX_CANDIDATES = 8  # of a ranking, in the table per label
CAPTION = "one empty: Dice and NSD are 0, no HD95. both empty: not counted."


def scores_table(evaluation: Evaluation) -> Table:
    """Build a section per source with its annotated labels, then all sources together and the mean over labels."""
    scores, labels = evaluation.scores, evaluation.labels
    table = Table("label", box=box.SIMPLE, collapse_padding=True, pad_edge=False, caption=CAPTION)
    nsd = f"NSD\n{evaluation.tolerance:g} mm"
    metrics = ("Dice", nsd, "HD95\nmm", "slice\nDice")[: len(metrics_of(scores))]
    for column in (*metrics, "pairs", "one\nempty", "both\nempty"):
        table.add_column(column, justify="right", no_wrap=True)
    by_source = [(str(name), rows) for name, rows in scores.groupby("source", sort=False)]
    for name, rows in by_source if len(by_source) > 1 else []:
        _add_section(table, name, summarise(rows, [label for label in labels if label in set(rows["label"])]))
    summary = summarise(scores, labels)
    _add_section(table, "all sources", summary)
    table.add_row("mean over labels", *map(number, summary[metrics_of(summary)].mean()), style="bold")
    return table


def _add_section(table: Table, heading: str, summary: pd.DataFrame) -> None:
    table.add_row(escape(heading), style="bold")
    for label, row in summary.iterrows():
        counts = (row[STATUSES].sum(), row[HD95_UNDEFINED], row[BOTH_EMPTY])
        table.add_row(
            f"  {escape(str(label))}", *map(number, row[metrics_of(summary)]), *(f"{count:.0f}" for count in counts)
        )
    table.add_section()


def ranking_tables(dice: pd.DataFrame) -> tuple[Table, Table]:
    """Build a table of all candidates by rank, and one of the best per label; `dice`: see `Ranking.dice`."""
    ranking = Table("rank", "model", "Dice", box=box.SIMPLE, title="Dice on annotated (case, label) pairs")
    for place, (name, values) in enumerate(dice.items(), start=1):
        ranking.add_row(str(place), escape(str(name)), number(float(values.mean())))
    best = dice.iloc[:, :MAX_CANDIDATES]
    per_label = Table("label", *(f"# {place}" for place in range(1, best.shape[1] + 1)), box=box.SIMPLE)
    for label, values in best.iterrows():
        per_label.add_row(escape(str(label)), *map(number, values))
    return ranking, per_label


def comparison_table(comparison: Comparison) -> Table:
    """Build a table of means, and of differences to the first model, per label."""
    rows = comparison.rows
    caption = "p: Wilcoxon's signed-rank test, corrected by Holm"
    table = Table("label", "model", title=f"{comparison.metric}: means and 95 % intervals over cases", caption=caption)
    table.box, table.pad_edge, table.collapse_padding = box.SIMPLE, False, True
    for column in ("mean", f"difference to {escape(rows[0].model)}", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    for row, p in zip(rows, corrected(rows), strict=True):
        if row.against is None:
            table.add_section()
        label = escape(row.label) if row.against is None else ""
        difference = shown(row.against.difference, signed=True) if row.against else ""
        table.add_row(label, escape(row.model), shown(row.mean), difference, p_value(p) if row.against else "")
    return table


def number(value: float) -> str:
    """Return a value as text with three decimals, or a dash for NaN."""
    return "-" if pd.isna(value) else f"{value:.3f}"
