"""Means, intervals and paired tests over test cases.

Seeds and folds of an arm are averaged for each case and label first. The intervals are therefore over test cases: they
show the variation between patients. Comparing seeds shows the variation between trainings.
Axis letters: **N** test cases, **K** labels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import DegenerateDataWarning, bootstrap, wilcoxon

RESAMPLES = 2000
MAX_LOST = 0.1  # share of the bootstrap resamples that may lose a label
MIN_CASES = 5  # with fewer, intervals and tests are meaningless


class Interval(NamedTuple):
    """A mean and its 95 % interval (NaN with fewer than five cases that have a value)."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """A mean paired difference with its 95 % interval, and the p-value of Wilcoxon's signed-rank test."""

    difference: Interval
    p: float


def holm(ps: Sequence[float]) -> list[float]:
    """Correct a family of p-values by Holm's method; NaN stays."""
    values = np.array(ps, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known])]
    factors = np.arange(len(order), 0, -1)
    values[order] = np.minimum(1, np.maximum.accumulate(values[order] * factors))
    return values.tolist()


def case_scores(cases: pd.DataFrame, metric: str) -> dict[str, pd.DataFrame]:
    """Return arm -> scores [N, K], a row per case and a column per label, averaged over seeds and folds."""
    labels = list(dict.fromkeys(cases["label"]))
    return {
        str(arm): rows.pivot_table(metric, "case", "label", aggfunc="mean", dropna=False).reindex(columns=labels)
        for arm, rows in cases.groupby("arm", sort=False)
    }


def mean_of(scores: np.ndarray) -> float:
    """Average scores [N, K] over cases, then over the labels that have a value; NaN without any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # mean of empty slice
        return float(np.nanmean(np.nanmean(scores, axis=0)))


def interval(scores: np.ndarray) -> Interval:
    """Return the mean of scores [N, K] (see `mean_of`) and its bootstrap percentile interval over cases with a value.

    Resamples in which a label keeps none of its values are left out, since they average other labels. If more than a
    tenth are left out, there is no interval.
    """
    known = ~np.isnan(scores)
    scores = scores[known.any(1)][:, known.any(0)]
    mean = mean_of(scores)
    if len(scores) < MIN_CASES:
        return Interval(mean, np.nan, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # resamples left out
        drawn = bootstrap(
            (np.arange(len(scores)),),
            lambda chosen: mean_of(scores[chosen]) if (~np.isnan(scores[chosen])).any(0).all() else np.nan,
            n_resamples=RESAMPLES,
            vectorized=False,
            method="percentile",
            random_state=np.random.default_rng(0),  # pyright: ignore[reportCallIssue]
        )
    means = drawn.bootstrap_distribution
    if np.isnan(means).mean() > MAX_LOST:
        return Interval(mean, np.nan, np.nan)
    low, high = np.nanquantile(means, (0.025, 0.975))
    return Interval(mean, float(low), float(high))


def paired_difference(ours: pd.DataFrame, theirs: pd.DataFrame) -> PairedDifference:
    """Compare two arms [N, K] over the cases that both have."""
    both = ours.index.intersection(theirs.index)
    difference = (ours.loc[both] - theirs.loc[both]).to_numpy(dtype=float)
    per_case = pd.DataFrame(difference).mean(axis=1).dropna()
    if len(per_case) < MIN_CASES:
        return PairedDifference(interval(difference), np.nan)
    p = 1.0 if (per_case == 0).all() else float(wilcoxon(per_case)[1])  # pyright: ignore
    return PairedDifference(interval(difference), p)


def shown(value: Interval | float, digits: int = 3, signed: bool = False) -> str:
    """Return a value as text: `0.812 (0.790 to 0.831)`, or a dash."""
    sign = "+" if signed else ""
    if not isinstance(value, Interval):
        return "-" if np.isnan(value) else f"{value:{sign}.{digits}f}"
    if np.isnan(value.mean):
        return "-"
    spread = "" if np.isnan(value.low) else f" ({value.low:{sign}.{digits}f} to {value.high:{sign}.{digits}f})"
    return f"{value.mean:{sign}.{digits}f}{spread}"


def p_value(p: float) -> str:
    return "-" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
