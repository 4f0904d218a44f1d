"""Draw all figures of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nnunetv2_conemos.benchmark.arms import network_of
from nnunetv2_conemos.benchmark.config import TestSet
from nnunetv2_conemos.benchmark.curves import curves_of
from nnunetv2_conemos.benchmark.ledger import of_run
from nnunetv2_conemos.benchmark.plots.charts import (
    draw_against_k,
    draw_annotated,
    draw_costs,
    draw_curves,
    draw_dice,
)
from nnunetv2_conemos.benchmark.plots.confident import confident_shares, draw_confident
from nnunetv2_conemos.benchmark.plots.overlays import draw_overlays
from nnunetv2_conemos.benchmark.plots.priors import draw_priors, prior_similarity
from nnunetv2_conemos.benchmark.results import Results
from nnunetv2_conemos.benchmark.workspace import PARTIAL, Workspace
from nnunetv2_conemos.inference.model_folder import read_checkpoint, read_model

AGAINST_K, FIGURES = "costs_against_k.csv", "figures"
Captions = dict[str, str]  # caption -> name of the file


def draw_figures(workspace: Workspace, results: Results, budgets: Sequence[Results], test: TestSet) -> Captions:
    """Draw the figures to figures/ of the benchmark; return caption -> file, relative to the report.

    `budgets`: the results at every number of epochs, rising.
    """
    annotated = dict(zip(workspace.labels.names, workspace.table.counts().sum(0).tolist(), strict=True))
    drawn = draw_results(results, budgets, workspace.folder, annotated)
    folder = workspace.folder / FIGURES
    more = draw_learned(first_checkpoints(workspace, results), folder)
    more |= draw_pictures(workspace, results, test, folder)
    return drawn | {caption: f"{FIGURES}/{name}" for caption, name in more.items()}


def draw_results(results: Results, budgets: Sequence[Results], folder: Path, annotated: Mapping[str, int]) -> Captions:
    """Draw what the two tables of a benchmark show to figures/ of its folder; return caption -> file.

    `annotated`: the number of cases annotated for each label, where that is known.
    """
    figures = folder / FIGURES
    figures.mkdir(exist_ok=True)
    drawn = draw_scores(results, annotated, figures) | draw_all_costs(results, folder / AGAINST_K, figures)
    if curves := curves_of(budgets):
        draw_curves(curves, figures / "curves.png")
        caption = "Mean Dice at the end of trainings of several lengths; the band holds all trainings of an arm."
        drawn[caption] = "curves.png"
    return {caption: f"{FIGURES}/{name}" for caption, name in drawn.items()}


def draw_scores(results: Results, annotated: Mapping[str, int], folder: Path) -> Captions:
    """Draw Dice per label, and against the number of cases annotated for a label where labels differ in it."""
    draw_dice(results, folder / "dice.png")
    drawn = {"Dice per label, with 95 % intervals over test cases.": "dice.png"}
    if len(set(annotated.values())) > 1:
        draw_annotated(results, annotated, folder / "annotated.png")
        drawn["Dice of each label against the number of cases annotated for it."] = "annotated.png"
    return drawn


def draw_all_costs(results: Results, against_k: Path, folder: Path) -> Captions:
    """Draw the costs of each arm, and those against the number of labels where they were measured."""
    draw_costs(results, folder / "costs.png")
    drawn = {"Cost of each arm.": "costs.png"}
    if against_k.is_file():
        draw_against_k(pd.read_csv(against_k), folder / "against_k.png")
        drawn["Cost against the number of labels, on random patches, without deep supervision."] = "against_k.png"
    return drawn


def first_checkpoints(workspace: Workspace, results: Results) -> dict[str, Path]:
    """Return arm -> checkpoint of its first training, for arms that are a trainer."""
    found: dict[str, Path] = {}
    for run in workspace.recipe.runs():
        folder = network_of(workspace, run, PARTIAL).folder
        checkpoint = folder / f"fold_{run.fold}" / "checkpoint_final.pth"
        if run.arm.kind == "trainer" and len(of_run(results.runs, run)) and checkpoint.is_file():
            found.setdefault(run.arm.name, checkpoint)
    return found


def draw_learned(checkpoints: dict[str, Path], folder: Path) -> Captions:
    """Draw what some methods log or learn: the share of confident pseudo-labels, and the priors of labels."""
    shares, similar, drawn = {}, {}, {}
    for arm, file in checkpoints.items():
        checkpoint = read_checkpoint(file)
        if curve := confident_shares(checkpoint):
            shares[arm] = curve
        if (similarity := prior_similarity(read_model(file.parent.parent), checkpoint)) is not None:
            similar[arm] = similarity
    if shares:
        draw_confident(shares, folder / "accepted.png")
        drawn[
            "Share of the voxels of unlabelled images whose pseudo-label was confident (above the threshold), in the "
            "first training."
        ] = "accepted.png"
    if similar:
        draw_priors(similar, folder / "priors.png")
        drawn["Cosine similarity of the learnt priors of any two labels, in the first training."] = "priors.png"
    return drawn


def draw_pictures(workspace: Workspace, results: Results, test: TestSet, folder: Path) -> Captions:
    """Draw predictions of the first training of each arm beside the ground truth."""
    pictured = {}
    for run in workspace.recipe.runs():
        predicted = workspace.run_folder(run) / "predictions"
        if run.arm.name not in pictured and len(of_run(results.runs, run)) and predicted.is_dir():
            pictured[run.arm.name] = (predicted, of_run(results.cases, run))
    if not pictured:
        return {}
    draw_overlays(pictured, test, workspace.dataset_json, folder / "overlays.png")
    caption = "The median and the worst test case of the first training of each arm, ground truth beside prediction."
    return {caption: "overlays.png"}
