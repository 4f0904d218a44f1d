"""Run a benchmark: the methods of this package and the alternatives to them, on one dataset."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nnunetv2_conemos.benchmark.arms import perform
from nnunetv2_conemos.benchmark.cases import choose_cases, write_datasets
from nnunetv2_conemos.benchmark.config import Recipe, Run, TestSet
from nnunetv2_conemos.benchmark.config_file import grown, read_recipe, recipe_text
from nnunetv2_conemos.benchmark.ledger import Ledger, read_table
from nnunetv2_conemos.benchmark.plots.figures import AGAINST_K
from nnunetv2_conemos.benchmark.preparation import prepare
from nnunetv2_conemos.benchmark.report import REPORTS, write_published_report, write_report
from nnunetv2_conemos.benchmark.runner import Runner
from nnunetv2_conemos.benchmark.workspace import PARTIAL, Workspace
from nnunetv2_conemos.datasets.folders import named_or_path
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.errors import ExistingFileError, MissingFileError
from nnunetv2_conemos.files import remove, write_aside
from nnunetv2_conemos.locks import locked
from nnunetv2_conemos.subprocesses import CommandError, environment_below

RECIPE = "benchmark.yaml"
PLAIN: dict[str, Any] = {"style": "red", "markup": False, "highlight": False}


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of a benchmark: the tables of its report by their titles, runs that `failed`, and `files` written."""

    tables: dict[str, pd.DataFrame]
    failed: tuple[Run, ...]
    files: tuple[Path, ...]


def run_benchmark(
    recipe: Recipe | Path | str,
    folder: Path | str,
    *,
    device: str = "cpu",
    processes: int = 1,
    report_only: bool = False,
) -> BenchmarkResult:
    """Train and test every arm of a recipe, and write the report.

    Called again, it continues with what is missing. An arm that fails is reported and does not stop the others.

    Args:
        recipe: what to compare, or a YAML file of it; it may grow by arms, seeds, folds and epochs from call to call.
        folder: where everything is written.
        device: cpu, cuda or mps.
        processes: how many preprocess and score; more than one requires a script with `if __name__ == "__main__":`.
        report_only: train nothing, only write the report of `recipe` (see `recipe_in`). Where `folder` holds no more
            than its recipe, runs.csv and cases.csv, the report has what these tell.

    Raises ValueError or OSError for a recipe, dataset or folder that does not fit, before anything is trained.
    """
    register_trainers()
    folder = Path(folder).resolve()
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(Path(recipe), {})
    if report_only and not (folder / "nnUNet_raw" / PARTIAL).is_dir():
        return BenchmarkResult(write_published_report(folder, recipe), (), files_in(folder))
    source = named_or_path(recipe.dataset).resolve()
    cases = choose_cases(recipe, source, processes)
    with only_benchmark_in(folder) as lock:
        whole = recipe if report_only else write_recipe(folder, recipe)
        workspace = Workspace(folder, whole, source)
        runner = Runner(folder, device, processes, environment_below(folder, os.environ), lock)
        test = write_datasets(workspace, runner, cases)
        failed = [] if report_only else perform_all(workspace, runner, recipe.runs(), test)
        tables = write_report(workspace, test)
    return BenchmarkResult(tables, tuple(failed), files_in(folder))


def files_in(folder: Path) -> tuple[Path, ...]:
    """Return the tables and reports of a benchmark."""
    return tuple(folder / name for name in ("runs.csv", "cases.csv", *REPORTS))


def recipe_in(folder: Path) -> Recipe:
    """Read the recipe of a benchmark that was begun in `folder`; raises FileNotFoundError where there is none."""
    if not (folder / RECIPE).is_file():
        raise MissingFileError(f"{folder.resolve()} holds no {RECIPE}: there is no benchmark to report.")
    return read_recipe(folder / RECIPE, {})


@contextmanager
def only_benchmark_in(folder: Path) -> Iterator[int | None]:
    """Lock a folder against other benchmarks, even while commands outlive a killed one; raises OSError."""
    others = (path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else ()
    if any(others) and not (folder / RECIPE).is_file():
        raise ExistingFileError(f"{folder} is not empty and holds no {RECIPE}. Choose another folder.")
    with locked(folder / ".lock", folder) as lock:
        yield lock


def write_recipe(folder: Path, recipe: Recipe) -> Recipe:
    """Write the recipe, and return it with what the folder compared before.

    What was prepared for another recipe is deleted, unless something was trained for it already.
    """
    file = folder / RECIPE
    if file.is_file() and ((folder / "runs.csv").is_file() or any((folder / "runs").glob("*"))):
        recipe = grown(recipe, read_recipe(file, {}), file)
    elif not file.is_file() or read_recipe(file, {}) != recipe:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "test"):
            remove(folder / name)
    write_aside(file, lambda aside: aside.write_text(recipe_text(recipe)))
    return recipe


def perform_all(workspace: Workspace, runner: Runner, runs: list[Run], test: TestSet) -> list[Run]:
    """Perform the runs that are not done yet, with a progress bar; return those that failed."""
    ledger, failed, console = Ledger(workspace.folder), [], Console(soft_wrap=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.description}", markup=False), console=console, speed_estimate_period=1e9
    ) as bar:
        task = bar.add_task("preparing", total=len(runs))
        width = max(20, console.width - 55)
        runner = replace(runner, report=lambda line: bar.update(task, description=line[:width]))
        prepare(workspace, runner)
        missing = [run for run in runs if not ledger.is_done(run)]
        bar.update(task, total=len(missing))
        for run in missing:
            console.print(f"{run.folder}", style="bold", markup=False)
            try:
                perform_and_enter(workspace, runner, ledger, run, test)
            except Exception as error:  # whatever it is, the other arms continue
                failed.append(run)
                ledger.enter_failure(run, reason(error), facts(workspace, run, runner.device))
                console.print(f"failed: {str(error) or repr(error)}", **PLAIN)
            bar.advance(task)
        try:
            write_costs_against_k(workspace, runner)
        except CommandError as error:
            console.print(f"no costs against the number of labels: {error}", **PLAIN)
    return failed


def perform_and_enter(workspace: Workspace, runner: Runner, ledger: Ledger, run: Run, test: TestSet) -> None:
    """Perform a run, evaluate its predictions, and record it in the ledger."""
    costs = perform(workspace, runner, run, test.images)
    predictions = workspace.run_folder(run) / "predictions"
    labels = ("--complete", "-djfile", workspace.raw / PARTIAL / "dataset.json")
    options = ("--tolerance", str(workspace.recipe.tolerance), "-np", str(runner.processes), "--overwrite")
    runner.run(f"{run.folder}_evaluate", "conemos", "evaluate", test.labels, predictions, *labels, *options)
    scores = read_table(predictions / "evaluation.csv")
    ledger.enter(run, scores, {**costs, **facts(workspace, run, runner.device)})


def facts(workspace: Workspace, run: Run, device: str) -> dict[str, Any]:
    name = workspace.configuration(run)
    hardware = torch.cuda.get_device_name() if device == "cuda" else device
    return {"configuration": name, "plans_hash": workspace.plans_hash(name), "device": hardware}


def reason(error: Exception) -> str:
    """Return in one line why a run failed: for a command, its exit status and the first error in its log."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if not isinstance(error, CommandError):
        return lines[0][:500]
    status = re.search(r"ended with status (-?\d+)", lines[0])
    named = [line for line in error.log.splitlines() if re.match(r"[\w.]+(Error|Exception): |conemos \w+: ", line)]
    return f"status {status[1] if status else '?'}: {(named or lines[-1:])[0]}"[:500]


def write_costs_against_k(workspace: Workspace, runner: Runner) -> None:
    """Measure the cost of the recipe's trainers against the number of labels, in a separate process; see `scaling`."""
    recipe, file = workspace.recipe, workspace.folder / AGAINST_K
    trainers = dict.fromkeys(arm.trainer for arm in recipe.arms)
    if file.is_file() and set(trainers) <= set(pd.read_csv(file)["trainer"]):
        return
    channels = str(len(workspace.dataset_json["channel_names"]))
    module = (sys.executable, "-m", "nnunetv2_conemos.benchmark.scaling")
    what = (workspace.plans_file, recipe.configuration, channels, runner.device)
    runner.run("costs_against_k", *module, file, *what, *trainers)
