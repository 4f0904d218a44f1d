"""What an import did: labels x sources, names x labels, overlaps, notes; as a record, tables, pictures and JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.annotations.overview import draw, source_counts
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.conversion.names import NameUse
from nnunetv2_conemos.files import write_json

FOLDER = "import"  # in the dataset
REPORT, NAMES, PICTURE, NAMES_PICTURE = "report.json", "names.csv", "labels_x_sources.png", "names_x_labels.png"
DRAWN = 60  # names that a picture shows
COLOURS = {"mapped": "tab:blue", "ignored": "0.75", "unknown": "tab:red"}


@dataclass(frozen=True)
class ImportReport:
    """Result of `import_dataset`: the raw folder written, who annotated what in it, names, overlaps and notes.

    `occurs` [sources, K] counts the annotated cases that show a label. `names` is empty after an anonymous import.
    """

    folder: Path
    table: SourceTable
    occurs: np.ndarray
    names: tuple[NameUse, ...]
    overlaps: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class NameListing:
    """Result of `list_names`: the layout found, in words, every name with what would become of it, the file written."""

    layout: str
    names: tuple[NameUse, ...]
    file: Path


def name_view(names: Iterable[NameUse]) -> Table:
    """Return a table of names: in how many cases, what becomes of them, and as which label."""
    view = Table(title="Names found", caption="label: of an unknown name, the nearest", caption_justify="left")
    for column in ("name", "cases", "outcome", "label"):
        view.add_column(column, justify="right" if column == "cases" else "left")
    styles = {"mapped": "", "ignored": "dim", "unknown": "bold red"}
    for use in names:
        label = "" if use.outcome == "ignored" else use.label
        view.add_row(escape(use.name), str(use.cases), use.outcome, escape(label), style=styles[use.outcome])
    return view


def names_text(names: Iterable[NameUse]) -> str:
    """Return the names as CSV."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(NameUse._fields)
    rows.writerows(names)
    return text.getvalue()


def write_report(report: ImportReport, folder: Path, layout: str) -> None:
    """Write the report, its tables and its pictures into a folder."""
    table = report.table
    sources = source_counts(table, report.occurs)
    content = {"layout": layout, "sources": sources, "overlaps": report.overlaps, "notes": report.notes}
    write_json(folder / REPORT, content)
    draw(table, report.occurs).savefig(folder / PICTURE, dpi=100)
    if report.names:
        (folder / NAMES).write_text(names_text(report.names), encoding="utf-8")
        draw_names(report.names, table.labels.names).savefig(folder / NAMES_PICTURE, dpi=100)


@rc_context({"text.parse_math": False})  # a name may hold $
def draw_names(names: Sequence[NameUse], labels: Sequence[str]) -> Figure:
    """Draw in how many cases each name was found, as bars in the order of the labels; the most frequent names only."""
    place = {label: number for number, label in enumerate(labels)}
    shown = sorted(
        names[:DRAWN], key=lambda use: (use.outcome != "mapped", place.get(use.label, len(place)), -use.cases)
    )
    figure = Figure(figsize=(8, 1.4 + 0.22 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), [use.cases for use in shown], color=[COLOURS[use.outcome] for use in shown])
    texts = [f"{use.name}  →  {use.label if use.outcome == 'mapped' else use.outcome}" for use in shown]
    axes.set_yticks(range(len(shown)), texts, fontsize="small")
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("cases")
    left_out = f" (the {DRAWN} most frequent of {len(names)})" if len(names) > DRAWN else ""
    axes.set_title(f"Names and their labels{left_out}", fontsize="medium")
    return figure
