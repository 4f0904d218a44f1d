"""`conemos compare`: evaluations of several models on the same cases, paired by case with the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.evaluation.evaluate import SCORES
from nnunetv2_conemos.evaluation.metrics import of_present, read_named
from nnunetv2_conemos.evaluation.significance import Comparison, Interval, case_scores, compare, holm, interval

MEAN = "all labels"
TEXTS = ("case", "source", "label", "status")


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Name -> folder, from FOLDER (called by its last part) or NAME=FOLDER; raises ValueError for equal names."""
    plain = [word for word in words if "=" not in word or Path(word).is_dir()]
    pairs = [(Path(word).resolve().name, word) if word in plain else tuple(word.split("=", 1)) for word in words]
    twice = sorted({name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1})
    if twice:
        raise ValueError(f"several folders are called {shorten(twice)}. Name them: film=FOLDER stock=FOLDER.")
    return {name: Path(folder) for name, folder in pairs}


def read_evaluations(folders: Mapping[str, Path], metric: str) -> pd.DataFrame:
    """Rows of all evaluations, with the column `arm`; raises FileNotFoundError or ValueError that names the file."""
    tables = []
    for name, folder in folders.items():
        file = folder / SCORES
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file. `conemos evaluate LABELS {folder} ...` writes it.")
        table = read_named(file, TEXTS)
        lacking = [column for column in ("case", "label", "status", metric) if column not in table]
        if lacking:
            raise ValueError(f"{file}: expected the columns that `conemos evaluate` writes, lacks {shorten(lacking)}.")
        tables.append(table.assign(arm=name))
    return pd.concat(tables, ignore_index=True)


def paired(scores: pd.DataFrame, arms: Sequence[str], metric: str) -> tuple[pd.DataFrame, int]:
    """The (case, label) pairs for which every arm has a value, and how many have none; ValueError where all have none.

    Labels that the reference lacks count for no arm.
    """
    present = of_present(scores)
    table = present.pivot_table(metric, ["case", "label"], "arm", dropna=False).reindex(columns=list(arms))
    everywhere = table.notna().all(axis=1)
    if not everywhere.any():
        raise ValueError(f"no (case, label) pair has a {metric} of all of them. Evaluate the same cases and labels.")
    chosen = pd.MultiIndex.from_arrays([present["case"], present["label"]]).isin(table.index[everywhere])
    left_out = present.loc[~chosen, ["case", "label"]].drop_duplicates()
    return present.loc[chosen, ["arm", "case", "label", metric]], len(left_out)


class Row(NamedTuple):
    """One model on one label, or on the mean over labels; without a comparison for the first model."""

    label: str
    model: str
    cases: int
    mean: Interval
    against: Comparison | None


def comparison(scores: pd.DataFrame, arms: Sequence[str], metric: str) -> list[Row]:
    """The mean over labels first, then each label; the first arm is what the others are compared with."""
    of_arm = case_scores(scores, metric)
    labels = list(of_arm[arms[0]].columns)
    groups = {MEAN: labels, **{label: [label] for label in labels}} if len(labels) > 1 else {labels[0]: labels}
    rows = []
    for label, chosen in groups.items():
        tables = {arm: of_arm[arm].filter(items=chosen) for arm in arms}
        for arm, ours in tables.items():
            values = ours.to_numpy(dtype=float)
            cases = int((~np.isnan(values)).any(1).sum())
            against = None if arm == arms[0] else compare(ours, tables[arms[0]])
            rows.append(Row(label, arm, cases, interval(values), against))
    return rows


def corrected(rows: Sequence[Row]) -> list[float]:
    """p of each row by Holm, those of the means among each other and those of single labels; NaN without one."""
    found = np.array([np.nan if row.against is None else row.against.p for row in rows])
    of_mean = np.array([row.label == rows[0].label for row in rows])
    for chosen in (of_mean, ~of_mean):
        found[chosen] = holm(found[chosen].tolist())
    return found.tolist()


def as_table(rows: Sequence[Row]) -> pd.DataFrame:
    """What is written: a line per row, intervals as three columns."""
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


def differences(scores: pd.DataFrame, arms: Sequence[str], metric: str) -> pd.DataFrame:
    """Columns case, label, model, difference: of every case to the first arm."""
    wide = scores.pivot_table(metric, ["case", "label"], "arm", sort=False)
    lines = [(*pair, arm, row[arm] - row[arms[0]]) for pair, row in wide.iterrows() for arm in arms[1:]]  # pyright: ignore
    return pd.DataFrame(lines, columns=pd.Index(["case", "label", "model", "difference"])).dropna()
