"""Curves of mean Dice against the length of a training; each point is a training to the end of its own schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from nnunetv2_conemos.benchmark.results import Results
from nnunetv2_conemos.evaluation.significance import Interval, PairedDifference, shown

SHARE = 0.95  # of the Dice of stock nnU-Net on complete labels
Length = Literal["steps", "minutes"]
Compared = Mapping[str, Mapping[str, PairedDifference]]  # arm of reference -> arm -> comparison


class Point(NamedTuple):
    """The trainings of an arm of one length: `steps` and `minutes` of all its networks, the mean Dice of each."""

    steps: float
    minutes: float
    dice: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.dice))


Curves = Mapping[str, Sequence[Point]]


def curves_of(per_budget: Sequence[Results]) -> Curves:
    """Return arm -> its points, by rising length, of arms that were trained for more than one."""
    curves: dict[str, list[Point]] = {}
    for results in per_budget:
        costs, trainings = results.costs().to_dict("index"), results.per_seed()
        for arm in (arm.name for arm in results.arms):
            steps = float(costs[arm]["steps"])
            minutes = steps * float(costs[arm]["step_s"]) / 60
            dice = tuple(trainings.loc[arm].dropna().astype(float).tolist())
            curves.setdefault(arm, []).append(Point(steps, minutes, dice))
    return {arm: points for arm, points in curves.items() if len(points) > 1}


def reached(points: Sequence[Point], dice: float, length: Length) -> str:
    """Return the length at which a curve, drawn with straight lines over its logarithm, reaches a mean Dice.

    That is `at most` that of the first point where this is above it, and `more than` that of the last where none is.
    """
    lengths = [getattr(point, length) for point in points]
    if any(math.isnan(value) for value in lengths):
        return "-"
    if points[0].mean >= dice:
        return f"at most {rounded(lengths[0])}"
    for (before, one), (after, other) in pairwise(zip(points, lengths, strict=True)):
        if before.mean < dice <= after.mean:
            share = (dice - before.mean) / (after.mean - before.mean)
            return rounded(math.exp((1 - share) * math.log(one) + share * math.log(other)))
    return f"more than {rounded(lengths[-1])}"


def rounded(value: float) -> str:
    """Return a length with two digits that mean something."""
    return f"{float(f'{value:.2g}'):,.12g}"


def time_table(per_budget: Sequence[Results], curves: Curves) -> pd.DataFrame | None:
    """Return the steps and minutes of each arm to SHARE of the upper bound; None where that was not trained."""
    bound = next((results.upper_bound for results in per_budget if results.upper_bound), None)
    best = max((point.mean for point in curves.get(str(bound), ())), default=None)
    if best is None:
        return None
    columns = {"steps": "steps of all networks", "minutes": "minutes"}
    rows = {
        arm: {title: reached(points, SHARE * best, length) for length, title in columns.items()}  # pyright: ignore
        for arm, points in curves.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def gains_table(results: Results, compared: Compared) -> pd.DataFrame | None:
    """Return what each arm gains over stock nnU-Net on partial labels, and lacks to complete labels, in points of Dice.

    Each with its interval over cases, and with the least and the most of any pair of trainings of one seed and fold.
    None where neither was trained. `compared`: both of them -> arm -> its paired comparison.
    """
    trainings = results.per_seed().astype(float)
    columns: dict[str, dict[str, str]] = {}
    references = {"stock on partial labels": results.vanilla, "stock on complete labels": results.upper_bound}
    for title, other in references.items():
        if other is not None:
            pairs = compared[other]
            columns[f"to {title} (95 % over cases)"] = {arm: over_cases(pair) for arm, pair in pairs.items()}
            columns[f"to {title}, trainings"] = {arm: over_trainings(trainings, arm, other) for arm in pairs}
    names = [arm.name for arm in results.arms]
    return pd.DataFrame(columns, index=names).fillna("-") if columns else None


def over_cases(pair: PairedDifference) -> str:
    """Return a difference in points, with its interval over cases."""
    return shown(Interval(*(100 * value for value in pair.difference)), 1, signed=True)


def over_trainings(trainings: pd.DataFrame, arm: str, other: str) -> str:
    """Return the least and the most difference, in points, of trainings of the same seed and fold.

    `trainings`: the mean Dice of each, a row per arm.
    """
    points = 100 * (trainings.loc[arm] - trainings.loc[other]).dropna().to_numpy()
    if not len(points):
        return "-"
    return f"{points[0]:+.1f}" if len(points) == 1 else f"{points.min():+.1f} to {points.max():+.1f}"
