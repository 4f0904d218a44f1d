"""Who annotated what, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.annotations.sources import SourceTable

MAX_DRAWN = 30  # sources


def cell_texts(annotated: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    """Return texts like `annotated`: '-' = not annotated, 'n' = found in all n annotated cases, 'm/n' = found in m."""
    cells = zip(annotated.flat, occurs.flat, strict=True)
    texts = ["-" if n == 0 else str(n) if m == n else f"{m}/{n}" for n, m in cells]
    return np.array(texts, dtype=object).reshape(annotated.shape)


def source_counts(table: SourceTable, occurs: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return for each source its cases and, for each of its labels, in how many they are annotated, and found.

    `occurs` [sources,K] counts the annotated cases that show a label.
    """
    return {
        source: {
            "cases": len(table.cases_of(source)),
            "labels": {
                label: {"annotated": int(n), "found": int(m)}
                for label, n, m in zip(table.labels.names, annotated, found, strict=True)
                if n
            },
        }
        for source, annotated, found in zip(table.sources, table.counts(), occurs, strict=True)
    }


def source_table(table: SourceTable, occurs: np.ndarray | None = None) -> Table:
    """Return a table of how many cases are annotated: label x source, or source x label where there are many sources.

    `occurs` [sources, K] adds in how many of these cases the label was found (see `cell_texts`).
    """
    labels = [escape(name) for name in table.labels.names]
    numbers = [str(number) for number in range(1, len(labels) + 1)]
    sources = [f"{escape(source)} ({len(table.cases_of(source))})" for source in table.sources] + ["all"]
    counts, found = (np.vstack([n, n.sum(0)]) for n in (table.counts(), table.counts() if occurs is None else occurs))
    cells = cell_texts(counts, found)
    view = Table(title="Cases annotated for each label", caption_justify="left")
    view.caption = "source (its cases); -: not annotated; m/n: annotated in n cases, found in m"
    many = len(sources) > len(labels) + 1
    if many:
        view.caption += "\nlabels: " + ", ".join(map(" ".join, zip(numbers, labels, strict=True)))
    if table.domains:
        labels, numbers = (["[italic]domain", *heads] for heads in (labels, numbers))
        domains = [escape(source.domain or "-") for source in table.sources.values()]
        cells = np.column_stack([[*domains, ""], cells])
    rows, columns, cells = (sources, numbers, cells) if many else (labels, sources, cells.T)
    view.add_column()
    for column in columns:
        view.add_column(column, justify="right", no_wrap=many)
    for row, texts in zip(rows, cells, strict=True):
        view.add_row(row, *texts)
    return view


def similar_names(names: Sequence[str]) -> list[list[str]]:
    """Return groups of names that differ only in case, separators, order of words, or a plural s."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        words = name.casefold().replace("_", " ").replace("-", " ").split()
        groups.setdefault(tuple(sorted(word.rstrip("s") for word in words)), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def first_and_rest(counts: np.ndarray) -> np.ndarray:
    """Return counts [sources,K] with those of the last sources summed up, where there are too many to draw."""
    if len(counts) <= MAX_DRAWN:
        return counts
    return np.vstack([counts[: MAX_DRAWN - 1], counts[MAX_DRAWN - 1 :].sum(0)])


@rc_context({"text.parse_math": False})  # a name may hold $
def draw(table: SourceTable, occurs: np.ndarray) -> Figure:
    """Draw annotated cases as a heat map label x source; blank: not annotated, red frame: declared, but in no case.

    Of many sources, the last column holds all but the first: an import of clinical data has hundreds.
    """
    names = [f"{source} ({len(table.cases_of(source))})" for source in table.sources]
    counts, occurs = (first_and_rest(n).T for n in (table.counts(), occurs))
    if len(names) > MAX_DRAWN:
        rest = [len(table.cases_of(source)) for source in [*table.sources][MAX_DRAWN - 1 :]]
        names = [*names[: MAX_DRAWN - 1], f"{len(rest)} more sources ({sum(rest)})"]
    texts = cell_texts(counts, occurs)
    figure = Figure(figsize=(2.5 + 0.9 * counts.shape[1], 1.8 + 0.35 * counts.shape[0]), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(
        counts, mask=counts == 0, annot=texts, fmt="", cmap="crest", vmin=0, linewidths=1, ax=axes,
        xticklabels=names, yticklabels=table.labels.names, cbar_kws={"label": "annotated cases"},
    )  # fmt: skip
    axes.tick_params(axis="y", rotation=0)
    axes.set_xticks(axes.get_xticks(), names, rotation=40, ha="right")
    axes.set_title("Who annotated what (blank: not annotated)", fontsize="medium")
    for row, column in np.argwhere((counts > 0) & (occurs == 0)):
        axes.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="red", linewidth=2.5, clip_on=False))
    return figure
