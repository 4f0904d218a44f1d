"""Pieces of the report: means of the table, and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nnunetv2_conemos.benchmark.config import Arm, Run
from nnunetv2_conemos.benchmark.ledger import Ledger
from nnunetv2_conemos.benchmark.plots.overlays import median_and_worst, shown_values
from nnunetv2_conemos.benchmark.report import as_markdown, fence


def test_labels_that_a_case_lacks_are_in_no_mean_of_the_table(tmp_path: Path):
    """As in the report: neither a right nothing nor a false find counts."""
    pairs = [("a", 0.8, "scored"), ("b", 0.0, "reference empty"), ("c", np.nan, "both empty"), ("d", 0.4, "scored")]
    rows = [
        {"case": case, "label": "liver", "dice": dice, "nsd": dice, "hd95_mm": 1.0, "status": status, "source": "s"}
        for case, dice, status in pairs
    ]
    ledger, run = Ledger(tmp_path), Run(Arm(arm="vanilla"), 1, 0, 0)
    ledger.enter(run, pd.DataFrame(rows), {})
    assert ledger.runs.loc[0, ["dice", "dice liver"]].tolist() == pytest.approx([0.6, 0.6])
    assert len(ledger.cases) == 4, "the pairs themselves are all there"


def test_pictures_are_of_different_cases_and_show_what_nnunet_writes():
    dice = pd.Series({"a": 0.5, "b": np.nan, "c": 0.9, "d": 0.1})
    assert list(median_and_worst(dice).items()) == [("a", "median, Dice 0.50"), ("d", "worst, Dice 0.10")]
    assert median_and_worst(dice[["c"]]) == {"c": "Dice 0.90"}
    labels = {"background": 0, "whole": [1, 2], "core": 1, "ignore": 3}
    assert shown_values({"labels": labels, "regions_class_order": [2, 1]}) == {"whole": 2, "core": 1, "ignore": 3}
    assert shown_values({"labels": {"background": 0, "b": 2, "a": 1}}) == {"b": 2, "a": 1}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a|b", r"a\|b"),
        ("<script>", r"\<script>"),
        ("[x](http://y)", r"[x\](http://y)"),
        ("**b** `c` _d_", r"\*\*b\*\* \`c\` \_d\_"),
        ("two\nlines", "two lines"),
        ("left_kidney, 0.9 [0.8, 1.0]", "left_kidney, 0.9 [0.8, 1.0]"),
    ],
)
def test_names_are_no_markup(name: str, written: str):
    assert as_markdown(name) == written


def test_a_recipe_cannot_end_its_block_of_code():
    assert fence("notes: ['```']") == "````"
    assert fence("dataset: D") == "```"
