"""Draw the cases that test and those that train."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.benchmark.config import Recipe
from nnunetv2_conemos.errors import SourceError


def draw_held_out(recipe: Recipe, source: Path, table: SourceTable) -> list[str]:
    """Sample completely annotated cases for the test; raises SourceError where there are too few."""
    complete = [case for case in table.cases if table.known(case).all()]
    if len(complete) < recipe.hold_out or len(table.cases) <= recipe.hold_out:
        raise SourceError(
            f"hold_out {recipe.hold_out}: expected that many cases annotated for every label and others to train on, "
            f"found {len(complete)} of {len(table.cases)} in {source}."
        )
    drawn = np.random.default_rng(recipe.hold_out_seed).permutation(complete).tolist()
    patients = list(dict.fromkeys(map(table.patient_of, drawn)))  # whole patients: none of their cases may train
    held_out = sorted(drawn, key=lambda case: patients.index(table.patient_of(case)))[: recipe.hold_out]
    if not apart_from(held_out, table.cases, table):
        raise SourceError(
            f"hold_out {recipe.hold_out}: every patient of {source} would be held out, and none is left to train on. "
            "Hold out fewer cases."
        )
    return sorted(held_out)


def apart_from(held_out: Collection[str], cases: Iterable[str], table: SourceTable) -> list[str]:
    """Return the cases that may train: those of other patients than the ones held out."""
    patients = {table.patient_of(case) for case in held_out}
    return [case for case in cases if table.patient_of(case) not in patients]


def draw_training_cases(recipe: Recipe, held_out: Collection[str], source: Path, table: SourceTable) -> list[str]:
    """Return the cases that train: all of other patients than those held out, or `training_cases` of them.

    Raises SourceError where there are fewer.
    """
    others = apart_from(held_out, table.cases, table)
    if not recipe.training_cases:
        return others
    if len(others) < recipe.training_cases:
        raise SourceError(
            f"training_cases {recipe.training_cases}: expected at least so many cases of {source} that are not held "
            f"out, found {len(others)}."
        )
    drawn = np.random.default_rng(recipe.hold_out_seed).permutation(others)[: recipe.training_cases]
    return sorted(drawn.tolist())
