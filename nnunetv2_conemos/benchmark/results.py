"""Compute the results of each arm for the report, from the two tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from nnunetv2_conemos.benchmark.config import Arm, Fold, Recipe
from nnunetv2_conemos.benchmark.ledger import DONE, KEY, Ledger, of_run
from nnunetv2_conemos.benchmark.networks import STEPS_PER_EPOCH
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.evaluation.metrics import METRICS, REFERENCE_EMPTY, of_present
from nnunetv2_conemos.evaluation.significance import PairedDifference, case_scores, interval, mean_of, paired_difference

COSTS = ["networks", "steps", "parameters", "step_s", "train_peak_mib", "predict_s", "predict_peak_mib"]


@dataclass(frozen=True)
class Results:
    """The runs of a recipe that are done, at one number of epochs, and those that failed.

    Labels that a test case truly lacks count for no arm; `false_finds` counts how many of them a training of an arm
    predicts. `budgets`: all numbers of epochs at which a run is done, rising.
    """

    recipe: Recipe
    runs: pd.DataFrame
    cases: pd.DataFrame
    failed: pd.DataFrame
    false_finds: dict[str, float]
    budgets: list[int]

    @classmethod
    def from_ledger(cls, recipe: Recipe, ledger: Ledger, epochs: int | None = None) -> Results:
        """Select the runs at `epochs`; by default the number at which most arms have a run, the largest of several.

        Raises ValueError where no run is done.
        """
        queried = pd.DataFrame([run.key for run in recipe.runs()])
        runs = ledger.runs.merge(queried, on=KEY)
        done, failed = runs.loc[runs["status"] == DONE], runs.loc[runs["status"] != DONE]
        if done.empty:
            reasons = "; ".join(f"{row['arm']}: {row['status']}" for _, row in failed.iterrows())
            raise InputError(f"{ledger.folder}: no run is done, nothing to report. {reasons}")
        budgets = sorted(map(int, done["epochs"].unique()))
        epochs = epochs or common_epochs(done)
        done = done.loc[done["epochs"] == epochs]
        cases = ledger.cases.merge(done.loc[:, KEY], on=KEY)
        finds = per_training(cases.loc[cases["status"] == REFERENCE_EMPTY], done)
        return cls(recipe, done, of_present(cases), failed, finds, budgets)

    @property
    def epochs(self) -> int:
        return int(self.runs["epochs"].iloc[0])

    @property
    def steps(self) -> int:
        return self.epochs * STEPS_PER_EPOCH

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms with a run, in the order of the recipe."""
        return [arm for arm in self.recipe.arms if arm.name in set(self.runs["arm"])]

    @cached_property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(self.cases["label"]))

    def scores(self, metric: str) -> dict[str, pd.DataFrame]:
        return case_scores(self.cases, metric)

    @cached_property
    def dice(self) -> dict[str, pd.DataFrame]:
        return self.scores("dice")

    @cached_property
    def means(self) -> pd.DataFrame:
        """Mean and interval of each metric over cases: a row per arm, a column per metric."""
        table = {}
        for metric in METRICS:
            scores = self.scores(metric)
            table[metric] = {arm.name: interval(scores[arm.name].to_numpy(dtype=float)) for arm in self.arms}
        return pd.DataFrame(table, index=[arm.name for arm in self.arms])

    @cached_property
    def per_label(self) -> pd.DataFrame:
        """Mean and interval of Dice over cases: a row per arm, a column per label."""
        return pd.DataFrame(
            {
                label: {arm.name: interval(self.dice[arm.name][[label]].to_numpy(dtype=float)) for arm in self.arms}
                for label in self.labels
            },
            index=[arm.name for arm in self.arms],
        )

    def per_seed(self) -> pd.DataFrame:
        """Return the mean Dice of every run: a row per arm, a column per seed and fold."""
        trainings: dict[tuple[int, Fold], dict[str, float]] = {}
        for run in self.recipe.runs():
            rows = of_run(self.cases, run)
            if len(rows):
                dice = case_scores(rows, "dice")[run.arm.name].to_numpy(dtype=float)
                trainings.setdefault((run.seed, run.fold), {})[run.arm.name] = mean_of(dice)
        return pd.DataFrame(trainings, index=[arm.name for arm in self.arms])

    def costs(self) -> pd.DataFrame:
        """Return the median cost of each arm over its runs; prediction in seconds per test case."""
        numbers = self.runs.reindex(columns=["arm", *COSTS]).set_index("arm").astype(float)
        costs = numbers.groupby(level=0).median().reindex([arm.name for arm in self.arms])
        costs["predict_s"] /= self.cases["case"].nunique()
        return costs

    @cached_property
    def best_baseline(self) -> str | None:
        """The arm with the highest mean Dice that is neither fully supervised nor one of this package's own methods."""
        baselines = [arm.name for arm in self.arms if not (arm.is_fully_supervised or arm.is_own)]
        return max(baselines, key=self.mean_dice, default=None)

    @property
    def vanilla(self) -> str | None:
        """The arm of stock nnU-Net on the partial labels."""
        return next((arm.name for arm in self.arms if arm.kind == "vanilla"), None)

    @property
    def upper_bound(self) -> str | None:
        """The arm of stock nnU-Net on complete labels."""
        return next((arm.name for arm in self.arms if arm.arm == "ceiling"), None)

    def mean_dice(self, arm: str) -> float:
        return mean_of(self.dice[arm].to_numpy(dtype=float))

    def against(self, reference: str) -> dict[str, PairedDifference]:
        """Return arm -> paired comparison of its Dice with that of a reference arm."""
        if reference not in self.dice:
            return {}
        return {
            arm.name: paired_difference(self.dice[arm.name], self.dice[reference])
            for arm in self.arms
            if arm.name != reference
        }


def per_training(rows: pd.DataFrame, runs: pd.DataFrame) -> dict[str, float]:
    """Return arm -> number of these rows per training, for the arms that have any."""
    found, trainings = rows["arm"].tolist(), runs["arm"].tolist()
    return {arm: found.count(arm) / trainings.count(arm) for arm in dict.fromkeys(found)}


def common_epochs(done: pd.DataFrame) -> int:
    """Return the number of epochs at which the most arms have a run; of several, the largest."""
    arms = {int(epochs): rows["arm"].nunique() for epochs, rows in done.groupby("epochs")}  # pyright: ignore
    return max(arms, key=lambda epochs: (arms[epochs], epochs))
