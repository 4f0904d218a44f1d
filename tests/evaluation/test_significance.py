"""Means, intervals and paired tests over test cases."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from nnunetv2_conemos.evaluation.significance import case_scores, holm, interval, mean_of, paired_difference


def table(scores: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(scores, index=[f"case{i}" for i in range(len(scores))])


def test_the_mean_is_over_cases_then_over_labels_that_have_a_value():
    scores = np.array([[1.0, 0.2, np.nan], [np.nan, 0.4, np.nan], [np.nan, 0.6, np.nan]])
    assert mean_of(scores) == pytest.approx((1.0 + 0.4) / 2)
    assert np.isnan(mean_of(np.full((3, 2), np.nan)))


def test_the_interval_holds_the_mean_and_narrows_with_cases():
    rng = np.random.default_rng(1)
    few, many = (interval(rng.normal(0.7, 0.1, (n, 3))) for n in (8, 200))
    for found in (few, many):
        assert found.low < found.mean < found.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    spread = 1.96 * 0.1 / np.sqrt(3 * 200)
    assert many.high - many.low == pytest.approx(2 * spread, rel=0.25)


def test_few_cases_have_a_mean_but_no_interval():
    found = interval(np.array([[0.5], [0.7]]))
    assert found.mean == pytest.approx(0.6)
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_labels_that_some_cases_lack_have_an_interval_of_the_cases_that_hold_them():
    scores = np.full((20, 2), np.nan)
    scores[:, 0] = 0.9
    scores[:6, 1] = np.linspace(0.2, 0.7, 6)
    rare = interval(scores[:, 1:])
    assert rare == interval(scores[:6, 1:])
    assert 0.2 < rare.low < rare.mean < rare.high < 0.7
    both = interval(scores)
    assert both.mean == pytest.approx((0.9 + 0.45) / 2)
    assert 0.55 <= both.low < both.mean < both.high <= 0.8, "never the mean of the frequent label alone"
    disjoint = np.full((5, 5), np.nan)
    np.fill_diagonal(disjoint, [0.2, 0.4, 0.6, 0.8, 0.9])
    assert np.isnan(interval(disjoint).low), "nearly every draw loses a label"
    scores[4:, 1] = np.nan
    assert np.isnan(interval(scores[:, 1:]).low), "four cases"
    assert interval(np.column_stack([scores, np.full(20, np.nan)])) == interval(scores)


def test_comparisons_are_paired_by_case():
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 1, (20, 2))  # cases differ far more than arms
    ours, theirs = table(base + 0.02 + rng.normal(0, 0.005, base.shape)), table(base).sample(frac=1, random_state=0)
    found = paired_difference(ours, theirs)
    assert found.difference.mean == pytest.approx(0.02, abs=0.005)
    assert found.difference.low > 0.01
    assert found.p == pytest.approx(wilcoxon((ours - table(base)).mean(axis=1))[1])
    assert found.p < 1e-4
    assert paired_difference(table(base), table(base)).p == 1.0


def test_seeds_are_averaged_for_each_case_and_label():
    rows = [
        {"arm": "a", "seed": seed, "case": case, "label": label, "dice": dice}
        for seed, dice in ((0, 0.2), (1, 0.6))
        for case in ("x", "y")
        for label in ("liver", "aorta")
    ]
    scores = case_scores(pd.DataFrame(rows), "dice")["a"]
    assert list(scores.columns) == ["liver", "aorta"], "in the order of the labels"
    assert scores.to_numpy() == pytest.approx(np.full((2, 2), 0.4))


def test_holms_correction():
    assert holm([0.01, 0.04, float("nan"), 0.03]) == pytest.approx([0.03, 0.06, float("nan"), 0.06], nan_ok=True)
    assert holm([0.6, 0.7]) == [1.0, 1.0]
