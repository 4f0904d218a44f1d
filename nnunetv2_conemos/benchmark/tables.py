"""Tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nnunetv2_conemos.benchmark.curves import SHARE, curves_of, gains_table, time_table
from nnunetv2_conemos.benchmark.results import Results, per_training
from nnunetv2_conemos.evaluation.significance import PairedDifference, holm, p_value, shown

HEADS = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95, mm"}
COST_HEADS = {
    "networks": ("networks trained", "{:.0f}"),
    "steps": ("training steps in all", "{:,.0f}"),
    "step_s": ("s per step", "{:.3f}"),
    "train_peak_mib": ("training memory, MiB", "{:,.0f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "predict_s": ("prediction, s per case", "{:.2f}"),
    "predict_peak_mib": ("prediction memory, MiB", "{:,.0f}"),
}


def report_tables(results: Results) -> dict[str, pd.DataFrame]:
    """Return title -> table of texts, a row per arm."""
    tables = {
        f"Means over {results.cases['case'].nunique()} test cases (95 % interval)": means_table(results),
        "Dice per label": results.per_label.map(shown),
        "Mean Dice of each training": seeds_table(results),
        "Costs": costs_table(results),
    }
    chosen = [arm.name for arm in results.arms if arm.reference]
    references = dict.fromkeys(name for name in (results.vanilla, results.best_baseline, *chosen) if name)
    bound = {results.upper_bound: None} if results.upper_bound else {}
    compared = {name: results.against(name) for name in references | bound}
    if (gains := gains_table(results, compared)) is not None:
        tables["Difference of mean Dice, in points"] = gains
    for reference in references:
        title = f"Difference of mean Dice to {reference}, paired by test case"
        tables[title] = differences_table(compared[reference])
    return tables


def curve_tables(per_budget: Sequence[Results]) -> dict[str, pd.DataFrame]:
    """Return title -> table of what only trainings of several lengths tell."""
    table = time_table(per_budget, curves_of(per_budget))
    title = f"Length of training to {SHARE:.0%} of stock nnU-Net on complete labels, read off the curves"
    return {} if table is None else {title: table}


def means_table(results: Results) -> pd.DataFrame:
    means, lacking = results.means, undefined_hd95(results)
    table = pd.DataFrame({HEADS[metric]: means[metric].map(shown) for metric in ("dice", "nsd")})
    table[HEADS["hd95_mm"]] = [shown(value, 1) for value in means["hd95_mm"]]
    table["pairs without HD95"] = [f"{lacking.get(arm, 0):g}" for arm in table.index]
    if results.false_finds:
        table["absent labels predicted"] = [f"{results.false_finds.get(arm, 0):g}" for arm in table.index]
    return table


def undefined_hd95(results: Results) -> dict[str, float]:
    """Return arm -> pairs per training without HD95, because only the reference holds the label."""
    lacking = results.cases["hd95_mm"].isna() & results.cases["dice"].notna()
    return per_training(results.cases.loc[lacking], results.runs)


def seeds_table(results: Results) -> pd.DataFrame:
    table = results.per_seed().map(shown)
    table.columns = [f"seed {seed}, fold {fold}" for seed, fold in table.columns]
    return table


def costs_table(results: Results) -> pd.DataFrame:
    costs = results.costs()
    columns = {
        head: ["-" if pd.isna(value) else text.format(value) for value in costs[name]]
        for name, (head, text) in COST_HEADS.items()
    }
    return pd.DataFrame(columns, index=costs.index)


def differences_table(pairs: Mapping[str, PairedDifference]) -> pd.DataFrame:
    """Return the comparisons of the mean Dice of every other arm with that of an arm of reference."""
    corrected = holm([pair.p for pair in pairs.values()])
    rows = {
        arm: {"difference (95 % interval)": shown(pair.difference, signed=True), "p (Wilcoxon, Holm)": p_value(p)}
        for (arm, pair), p in zip(pairs.items(), corrected, strict=True)
    }
    return pd.DataFrame(rows).T
