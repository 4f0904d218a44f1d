"""Write the report of a benchmark, in Markdown and HTML, from its two tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from nnunetv2_conemos.benchmark.config import Fold, Recipe, TestSet
from nnunetv2_conemos.benchmark.config_file import recipe_text
from nnunetv2_conemos.benchmark.ledger import PACKAGES, Ledger
from nnunetv2_conemos.benchmark.plots.figures import Captions, draw_figures, draw_results
from nnunetv2_conemos.benchmark.results import Results
from nnunetv2_conemos.benchmark.tables import curve_tables, report_tables
from nnunetv2_conemos.benchmark.workspace import Workspace
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.text_files import read_shared_json

REPORTS = ("report.md", "report.html")
MARKUP = re.compile(r"[\\`*<|]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")  # what Markdown would not show as it is


Tables = dict[str, pd.DataFrame]  # title -> table


def write_report(workspace: Workspace, test: TestSet) -> Tables:
    """Write report.md, report.html and the figures; return title -> table. Raises ValueError where no run is done."""
    results, budgets = results_in(workspace.folder, workspace.recipe)
    figures = draw_figures(workspace, results, budgets, test)
    return write(workspace.folder, results, budgets, figures, dataset_facts(workspace))


def write_published_report(folder: Path, recipe: Recipe) -> Tables:
    """Write the report of a folder that holds nothing but recipe, runs.csv and cases.csv; return title -> table.

    What needs the dataset or the predictions is left out. Raises ValueError where no run is done.
    """
    results, budgets = results_in(folder, recipe)
    figures = draw_results(results, budgets, folder, {})
    return write(folder, results, budgets, figures, {"title": Path(recipe.dataset).name, "cases": None})


def results_in(folder: Path, recipe: Recipe) -> tuple[Results, list[Results]]:
    """Return the results at the number of epochs that most arms have, and those at every one, rising."""
    ledger = Ledger(folder)
    results = Results.from_ledger(recipe, ledger)
    return results, [
        results if n == results.epochs else Results.from_ledger(recipe, ledger, n) for n in results.budgets
    ]


def write(folder: Path, results: Results, budgets: list[Results], figures: Captions, dataset: dict[str, Any]) -> Tables:
    """Fill in the templates; `dataset`: title and, where it is there, what is said of the dataset."""
    tables = report_tables(results) | curve_tables(budgets)
    for other in budgets:
        if other is not results:
            tables |= {f"{title}, after {other.steps:,} steps": table for title, table in report_tables(other).items()}
    content = {**facts(results), **dataset, "tables": tables, "figures": figures}
    environment = templates()
    for name in REPORTS:
        text = environment.get_template(f"{name}.j2").render(content)
        write_aside(folder / name, lambda file, text=text: file.write_text(text))
    return tables


def templates() -> Environment:
    """Return the environment of the templates; the filter `md` writes a text into Markdown as it is."""
    environment = Environment(
        loader=PackageLoader("nnunetv2_conemos.benchmark"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=lambda name: str(name).endswith("html.j2"),
    )
    environment.filters["md"] = as_markdown
    return environment


def as_markdown(text: object) -> str:
    """Return a text in one line, also for a cell of a table, that no name can turn into markup, a link or HTML."""
    return MARKUP.sub(r"\\\g<0>", " ".join(str(text).splitlines()))


def fence(text: str) -> str:
    """Return a line of backquotes that opens and closes a block of code with this text."""
    return "`" * max([3, *(1 + len(run) for run in re.findall("`+", text))])


def facts(results: Results) -> dict[str, Any]:
    """Return the content of the report besides its tables and figures, and what is said of the dataset."""
    recipe, runs = results.recipe, results.runs
    return {
        "recipe": recipe,
        "recipe_yaml": recipe_text(recipe),
        "fence": fence(recipe_text(recipe)),
        "labels": results.labels,
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


def dataset_facts(workspace: Workspace) -> dict[str, Any]:
    """Return what the report says of the dataset."""
    cases = len(workspace.table.cases)
    return {
        "title": workspace.source.name,
        "labels": list(workspace.labels.names),
        "cases": cases,
        "training_cases": training_cases(workspace.splits_file, workspace.recipe.folds, cases),
    }


def training_cases(splits_file: Path, folds: tuple[Fold, ...], cases: int) -> str:
    """Return as text how many of the cases train in each fold."""
    numbers = {cases} if "all" in folds else set()
    splits = read_shared_json(splits_file) if splits_file.is_file() else []
    numbers |= {len(splits[fold]["train"]) for fold in folds if fold != "all"}
    return " or ".join(map(str, sorted(numbers)))


def optimisers(recipe: Recipe, results: Results) -> str:
    """Return as text the optimiser of the recipe, and the arms that have another."""
    others = [f"{arm.name}: {arm.optimiser}" for arm in results.arms if arm.optimiser not in (None, recipe.optimiser)]
    return recipe.optimiser + (f" ({', '.join(others)})" if others else "")
