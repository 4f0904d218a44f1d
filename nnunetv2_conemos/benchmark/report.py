"""The report of a benchmark, in Markdown and HTML, from its two tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunetv2_conemos.benchmark.arms import model_of
from nnunetv2_conemos.benchmark.config import Recipe, TestSet
from nnunetv2_conemos.benchmark.config_file import recipe_text
from nnunetv2_conemos.benchmark.ledger import PACKAGES, Ledger, of_run
from nnunetv2_conemos.benchmark.plots.charts import (
    draw_against_k,
    draw_annotated,
    draw_costs,
    draw_dice,
    draw_steps,
    with_several_budgets,
)
from nnunetv2_conemos.benchmark.plots.confident import accepted_shares, draw_accepted
from nnunetv2_conemos.benchmark.plots.overlays import draw_overlays
from nnunetv2_conemos.benchmark.plots.priors import draw_priors, prior_similarity
from nnunetv2_conemos.benchmark.results import Results, per_training
from nnunetv2_conemos.benchmark.workspace import PARTIAL, Workspace
from nnunetv2_conemos.evaluation.significance import holm, p_value, shown
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.inference.model_folder import read_checkpoint, read_model

REPORTS = ("report.md", "report.html")
AGAINST_K = "costs_against_k.csv"
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


def write_report(place: Workspace, test: TestSet) -> dict[str, pd.DataFrame]:
    """Write report.md, report.html and the figures; returns the tables. Raises ValueError where no run is done."""
    ledger = Ledger(place.folder)
    results = Results.from_ledger(place.recipe, ledger)
    others = {n: Results.from_ledger(place.recipe, ledger, n) for n in results.budgets if n != results.epochs}
    budgets = [others.get(n, results) for n in results.budgets]
    (place.folder / "figures").mkdir(exist_ok=True)
    drawn = draw(place, results, budgets, test)
    environment = Environment(
        loader=PackageLoader("nnunetv2_conemos.benchmark"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=lambda name: str(name).endswith("html.j2"),
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    found = tables(results)
    for other in others.values():
        found |= {f"{title}, after {other.steps:,} steps": table for title, table in tables(other).items()}
    content = {**facts(place, results), "tables": found, "figures": drawn}
    for name in REPORTS:
        text = environment.get_template(f"{name}.j2").render(content)
        write_aside(place.folder / name, lambda file, text=text: file.write_text(text))
    return found


def facts(place: Workspace, results: Results) -> dict[str, Any]:
    """What the report says beside its tables and figures."""
    recipe, runs = place.recipe, results.runs
    return {
        "recipe": recipe,
        "title": place.source.name,
        "recipe_yaml": recipe_text(recipe),
        "labels": list(place.labels.names),
        "cases": len(place.table.cases),
        "training_cases": training_cases(place),
        "test_cases": results.cases["case"].nunique(),
        "epochs": results.epochs,
        "steps": results.steps,
        "optimisers": optimisers(recipe, results),
        "best_baseline": results.best_baseline,
        "failed": [dict(row) for _, row in results.failed.iterrows()],
        "devices": ", ".join(sorted(set(runs["device"].astype(str)))),
        "versions": ", ".join(f"{name} {'/'.join(sorted(set(runs[name].astype(str))))}" for name in PACKAGES),
        "plans": ", ".join(sorted(set(runs["configuration"] + " " + runs["plans_hash"]))),
    }


def training_cases(place: Workspace) -> str:
    """How many of the cases train in each fold."""
    numbers = {len(place.table.cases)} if "all" in place.recipe.folds else set()
    file = place.preprocessed / PARTIAL / "splits_final.json"
    splits = json.loads(file.read_text()) if file.is_file() else []
    numbers |= {len(splits[fold]["train"]) for fold in place.recipe.folds if fold != "all"}
    return " or ".join(map(str, sorted(numbers)))


def optimisers(recipe: Recipe, results: Results) -> str:
    """That of the recipe, and the arms that have another."""
    others = [f"{arm.name}: {arm.optimiser}" for arm in results.arms if arm.optimiser not in (None, recipe.optimiser)]
    return recipe.optimiser + (f" ({', '.join(others)})" if others else "")


def undefined_hd95(results: Results) -> dict[str, float]:
    """Arm -> pairs without HD95 in a training of it, because only the reference holds the label."""
    lacking = results.cases["hd95_mm"].isna() & results.cases["dice"].notna()
    return per_training(results.cases.loc[lacking], results.runs)


def tables(results: Results) -> dict[str, pd.DataFrame]:
    """Title -> table of texts, a row per arm."""
    means, lacking = results.means, undefined_hd95(results)
    overview = pd.DataFrame({HEADS[metric]: means[metric].map(shown) for metric in ("dice", "nsd")})
    overview["HD95, mm"] = [shown(value, 1) for value in means["hd95_mm"]]
    overview["pairs without HD95"] = [f"{lacking.get(arm, 0):g}" for arm in overview.index]
    if results.false_finds:
        overview["absent labels predicted"] = [f"{results.false_finds.get(arm, 0):g}" for arm in overview.index]
    seeds = results.per_seed().map(shown)
    seeds.columns = [f"seed {seed}, fold {fold}" for seed, fold in seeds.columns]
    costs = results.costs()
    found = {
        f"Means over {results.cases['case'].nunique()} test cases (95 % interval)": overview,
        "Dice per label": results.per_label.map(shown),
        "Mean Dice of each training": seeds,
        "Costs": pd.DataFrame(
            {
                head: ["-" if pd.isna(value) else text.format(value) for value in costs[name]]
                for name, (head, text) in COST_HEADS.items()
            },
            index=costs.index,
        ),
    }
    chosen = [arm.name for arm in results.arms if arm.reference]
    for reference in dict.fromkeys(name for name in (vanilla(results), results.best_baseline, *chosen) if name):
        pairs = results.against(reference)
        rows = {
            arm: {"difference (95 % interval)": shown(pair.difference, signed=True), "p (Wilcoxon, Holm)": p_value(p)}
            for (arm, pair), p in zip(pairs.items(), holm([pair.p for pair in pairs.values()]), strict=True)
        }
        found[f"Difference of mean Dice to {reference}, paired by test case"] = pd.DataFrame(rows).T
    return found


def vanilla(results: Results) -> str | None:
    return next((arm.name for arm in results.arms if arm.kind == "vanilla"), None)


def first_checkpoints(place: Workspace, results: Results) -> dict[str, Path]:
    """Arm -> checkpoint of its first training, for arms that are a trainer."""
    found: dict[str, Path] = {}
    for run in place.recipe.runs():
        folder = model_of(place, run, PARTIAL).folder(place.recipe)
        checkpoint = folder / f"fold_{run.fold}" / "checkpoint_final.pth"
        if run.arm.kind == "trainer" and len(of_run(results.runs, run)) and checkpoint.is_file():
            found.setdefault(run.arm.name, checkpoint)
    return found


def draw(place: Workspace, results: Results, budgets: Sequence[Results], test: TestSet) -> dict[str, str]:
    """Draw the figures; returns caption -> file, relative to the report."""
    folder = place.folder / "figures"
    annotated = dict(zip(place.labels.names, place.table.counts().sum(0).tolist(), strict=True))
    drawn = {"Dice per label, with 95 % intervals over test cases.": "dice.png"}
    draw_dice(results, folder / "dice.png")
    if len(set(annotated.values())) > 1:
        draw_annotated(results, annotated, folder / "annotated.png")
        drawn["Dice of each label against the cases annotated for it."] = "annotated.png"
    draw_costs(results, folder / "costs.png")
    drawn["What each arm costs."] = "costs.png"
    if (place.folder / AGAINST_K).is_file():
        draw_against_k(pd.read_csv(place.folder / AGAINST_K), folder / "against_k.png")
        drawn["Cost against the number of labels, on random patches, without deep supervision."] = "against_k.png"
    if several := with_several_budgets(budgets):
        draw_steps(budgets, several, folder / "steps.png")
        drawn["Mean Dice against the steps of a training (each is one of its own), of arms with several."] = "steps.png"
    shares, similar = {}, {}
    for arm, file in first_checkpoints(place, results).items():
        checkpoint = read_checkpoint(file)
        if curve := accepted_shares(checkpoint):
            shares[arm] = curve
        if (similarity := prior_similarity(read_model(file.parent.parent), checkpoint)) is not None:
            similar[arm] = similarity
    if shares:
        draw_accepted(shares, folder / "accepted.png")
        drawn["Share of the voxels of unlabelled images whose pseudo-label counted, in the first training."] = (
            "accepted.png"
        )
    if similar:
        draw_priors(similar, folder / "priors.png")
        drawn["How alike the learned priors of any two labels are (cosine), in the first training."] = "priors.png"
    pictured = {}
    for run in place.recipe.runs():
        predicted = place.run_folder(run) / "predictions"
        if run.arm.name not in pictured and len(of_run(results.runs, run)) and predicted.is_dir():
            pictured[run.arm.name] = (predicted, of_run(results.cases, run))
    if pictured:
        draw_overlays(pictured, test, place.dataset_json, folder / "overlays.png")
        caption = "The median and the worst test case of the first training of each arm, truth beside prediction."
        drawn[caption] = "overlays.png"
    return {caption: f"figures/{name}" for caption, name in drawn.items()}
