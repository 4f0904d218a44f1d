"""Compare evaluations of several models on the same cases, paired by case with the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nnunetv2_conemos.errors import InputError, MissingFileError, shorten
from nnunetv2_conemos.evaluation.evaluate import SCORES, SUMMARY
from nnunetv2_conemos.evaluation.metrics import of_present, read_named
from nnunetv2_conemos.evaluation.plots import draw_differences
from nnunetv2_conemos.evaluation.provenance import require_comparable
from nnunetv2_conemos.evaluation.significance import (
    Interval,
    PairedDifference,
    case_scores,
    holm,
    interval,
    paired_difference,
)
from nnunetv2_conemos.files import Writer, exclusive, require_absent, write_together

MEAN = "all labels"
TEXTS = ("case", "source", "label", "status")


class Row(NamedTuple):
    """Scores of one model on one label, or on the mean over labels; `against` is None for the first model."""

    label: str
    model: str
    cases: int
    mean: Interval
    against: PairedDifference | None


@dataclass(frozen=True)
class Comparison:
    """Result of a comparison.

    `rows`: the mean over labels first, then each label, every model in each; `left_out`: how many (case, label) pairs
    lack a value from at least one model; `files` that were written; `notes`: what could not be checked.
    """

    metric: str
    rows: tuple[Row, ...]
    left_out: int
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """A line per row; intervals are three columns each."""
        return as_table(self.rows)


def compare(
    folders: Mapping[str, Path | str],
    *,
    metric: str = "dice",
    output: Path | str | None = None,
    figure: Path | str | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Compare models by their evaluations, paired by case with the first of them.

    Only (case, label) pairs for which every model has a value count.

    Args:
        folders: name -> folder with an evaluation.csv.
        metric: a column of evaluation.csv: dice, nsd, hd95_mm or slice_dice.
        output: CSV file to write the table to.
        figure: PNG file to draw the differences of every case to.
        overwrite: replace existing files.

    Raises ValueError for fewer than two folders or evaluations without a pair in common, SourceError for evaluations of
    other labels, references or (NSD) tolerances, FileNotFoundError for a missing evaluation, FileExistsError for files
    that are there already unless `overwrite`.
    """
    if len(folders) < 2:
        raise InputError("expected at least two folders: the first is what the others are compared with.")
    table_file, picture = (None if file is None else Path(file) for file in (output, figure))
    files = tuple(file for file in (table_file, picture) if file is not None)
    with exclusive(files[0]) if files else nullcontext():
        for file in files:
            require_absent(file, overwrite)
        models = list(folders)
        evaluations = read_evaluations(folders, metric)
        notes = require_comparable({name: Path(folder) / SUMMARY for name, folder in folders.items()}, metric)
        scores, left_out = common_pairs(evaluations, models, metric)
        comparison = Comparison(metric, tuple(compare_models(scores, models, metric)), left_out, files, tuple(notes))
        writers: dict[Path, Writer] = {}
        if picture:
            drawn = differences(scores, models, metric)
            writers[picture] = lambda file: draw_differences(drawn, models[0], file)
        if table_file:
            writers[table_file] = lambda file: comparison.table.to_csv(file, index=False)
        if files:
            write_together(writers, files[0])
    return comparison


def read_evaluations(folders: Mapping[str, Path | str], metric: str) -> pd.DataFrame:
    """Read all evaluations into one table with the column `arm`; errors name the file."""
    tables = []
    for name, folder in folders.items():
        file = Path(folder) / SCORES
        if not file.is_file():
            raise MissingFileError(f"{file}: no such file. `conemos evaluate LABELS {folder} ...` writes it.")
        table = read_named(file, TEXTS)
        lacking = [column for column in ("case", "label", "status", metric) if column not in table]
        if lacking:
            raise InputError(f"{file}: expected the columns that `conemos evaluate` writes, lacks {shorten(lacking)}.")
        if table.empty:
            raise InputError(f"{file}: expected a row for each case and label, found none. Evaluate again.")
        if not pd.api.types.is_numeric_dtype(table[metric]):
            text = next((value for value in table[metric] if isinstance(value, str)), table[metric].iloc[0])
            raise InputError(f"{file}: expected numbers in the column {metric}, found '{text}'. Evaluate again.")
        tables.append(table.assign(arm=name))
    return pd.concat(tables, ignore_index=True)


def common_pairs(scores: pd.DataFrame, models: Sequence[str], metric: str) -> tuple[pd.DataFrame, int]:
    """Keep the (case, label) pairs for which every model has a value, and count the others.

    Labels that the reference lacks count for no model. Raises ValueError where no pair is left.
    """
    present = of_present(scores)
    table = present.pivot_table(metric, ["case", "label"], "arm", dropna=False).reindex(columns=list(models))
    everywhere = table.notna().all(axis=1)
    if not everywhere.any():
        raise InputError(f"no (case, label) pair has a {metric} of all models. Evaluate the same cases and labels.")
    chosen = pd.MultiIndex.from_arrays([present["case"], present["label"]]).isin(table.index[everywhere])
    left_out = present.loc[~chosen, ["case", "label"]].drop_duplicates()
    return present.loc[chosen, ["arm", "case", "label", metric]], len(left_out)


def compare_models(scores: pd.DataFrame, models: Sequence[str], metric: str) -> list[Row]:
    """Compare the other models with the first, on the mean over labels, then on each label."""
    of_model = case_scores(scores, metric)
    labels = list(of_model[models[0]].columns)
    groups = {MEAN: labels, **{label: [label] for label in labels}} if len(labels) > 1 else {labels[0]: labels}
    rows = []
    for label, chosen in groups.items():
        tables = {model: of_model[model].filter(items=chosen) for model in models}
        for model, ours in tables.items():
            values = ours.to_numpy(dtype=float)
            cases = int((~np.isnan(values)).any(1).sum())
            against = None if model == models[0] else paired_difference(ours, tables[models[0]])
            rows.append(Row(label, model, cases, interval(values), against))
    return rows


def corrected(rows: Sequence[Row]) -> list[float]:
    """Correct the p-values by Holm's method, means and single labels separately; NaN where a row has none."""
    found = np.array([np.nan if row.against is None else row.against.p for row in rows])
    of_mean = np.array([row.label == rows[0].label for row in rows])
    for chosen in (of_mean, ~of_mean):
        found[chosen] = holm(found[chosen].tolist())
    return found.tolist()


def as_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Convert the rows to a table: one line each, intervals as three columns."""
    lines = []
    for row, p in zip(rows, corrected(rows), strict=True):
        mean = dict(zip(("mean", "mean_low", "mean_high"), row.mean, strict=True))
        difference = row.against.difference if row.against else (np.nan,) * 3
        lines.append(
            {"label": row.label, "model": row.model, "cases": row.cases, **mean}
            | dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True))
            | {"p": row.against.p if row.against else np.nan, "p_holm": p}
        )
    return pd.DataFrame(lines)


def differences(scores: pd.DataFrame, models: Sequence[str], metric: str) -> pd.DataFrame:
    """Return the difference of every case to the first model: columns case, label, model, difference."""
    wide = scores.pivot_table(metric, ["case", "label"], "arm", sort=False)
    lines = [(*pair, model, row[model] - row[models[0]]) for pair, row in wide.iterrows() for model in models[1:]]  # pyright: ignore
    return pd.DataFrame(lines, columns=pd.Index(["case", "label", "model", "difference"])).dropna()
