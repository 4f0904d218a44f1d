"""What trainings of several lengths tell: curves, the time to an accuracy, gains over cases and over trainings."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from nnunetv2_conemos.benchmark.config import Recipe
from nnunetv2_conemos.benchmark.curves import Point, curves_of, gains_table, reached, time_table
from nnunetv2_conemos.benchmark.ledger import Ledger
from nnunetv2_conemos.benchmark.plots.charts import draw_curves
from nnunetv2_conemos.benchmark.results import Results

ARMS = ("vanilla", "ConditionalFiLMTrainer", "ceiling")
DICE = {"vanilla": {1: 0.40, 10: 0.60}, "ConditionalFiLMTrainer": {1: 0.50, 10: 0.80}, "ceiling": {1: 0.60, 10: 0.90}}


@pytest.fixture
def budgets(tmp_path) -> list[Results]:
    """Six cases, two trainings each of 250 and 2,500 steps: the second is 0.02 better, each case 0.01 than the last."""
    recipe = Recipe.model_validate({"dataset": "1", "arms": ARMS, "epochs": (1, 10)})
    ledger = Ledger(tmp_path)
    for run in recipe.runs():
        mean = DICE[run.arm.name][run.epochs] + (0.02 * run.seed if run.arm.name != "vanilla" else 0) - 0.01
        rows = [
            {"case": f"c{n}", "label": "liver", "dice": mean + 0.01 * (n - 2.5), "nsd": 1.0, "hd95_mm": 1.0,
             "status": "scored", "source": "s"}
            for n in range(6)
        ]  # fmt: skip
        networks = 2 if run.arm.name == "ceiling" else 1
        ledger.enter(
            run, pd.DataFrame(rows), {"steps": networks * 250 * run.epochs, "step_s": 0.6, "networks": networks}
        )
    return [Results.from_ledger(recipe, ledger, epochs) for epochs in (1, 10)]


def test_a_point_has_the_steps_and_minutes_of_all_networks_and_every_training(budgets):
    curves = curves_of(budgets)
    assert list(curves) == list(ARMS)
    first, last = curves["ceiling"]
    assert (first.steps, first.minutes) == (500, pytest.approx(5))
    assert last.dice == pytest.approx((0.89, 0.91))
    assert last.mean == pytest.approx(0.9)


def test_an_arm_of_one_length_has_no_curve(budgets):
    assert curves_of(budgets[:1]) == {}


def test_the_time_to_an_accuracy_is_read_off_the_curve():
    points = [Point(250, 2.5, (0.4, 0.5)), Point(2500, 25, (0.8,)), Point(5000, math.nan, (0.7,))]
    assert reached(points[:2], 0.625, "steps") == "790", "half way, on a logarithmic axis"
    assert reached(points[:2], 0.625, "minutes") == "7.9"
    assert reached(points, 0.45, "steps") == "at most 250"
    assert reached(points, 0.9, "steps") == "more than 5,000"
    assert reached(points, 0.6, "minutes") == "-", "not every training was timed"


def test_the_bound_is_stock_nnunet_on_complete_labels(budgets):
    table = time_table(budgets, curves_of(budgets))
    assert table is not None
    steps = table["steps of all networks"]
    assert steps["vanilla"] == "more than 2,500"
    share = (0.95 * 0.9 - 0.6) / 0.3
    assert float(steps["ceiling"].replace(",", "")) == pytest.approx(500 * 10**share, rel=0.05)


def test_gains_are_in_points_over_cases_and_over_trainings_apart(budgets):
    results = budgets[1]
    table = gains_table(results, {name: results.against(name) for name in ("vanilla", "ceiling")})
    assert table is not None
    row = table.loc["ConditionalFiLMTrainer"]
    assert row["to stock on partial labels (95 % over cases)"] == "+21.0 (+21.0 to +21.0)"
    assert row["to stock on partial labels, trainings"] == "+20.0 to +22.0"
    assert row["to stock on complete labels, trainings"] == "-10.0 to -10.0"
    assert table.loc["vanilla", "to stock on partial labels, trainings"] == "-"


def test_curves_are_drawn_also_where_nothing_was_timed(budgets, tmp_path):
    curves = curves_of(budgets)
    draw_curves(curves, tmp_path / "both.png")
    untimed = {arm: [point._replace(minutes=np.nan) for point in points] for arm, points in curves.items()}
    draw_curves(untimed, tmp_path / "steps.png")
    sizes = [(tmp_path / name).stat().st_size for name in ("both.png", "steps.png")]
    assert sizes[0] > sizes[1] > 10_000
