"""`conemos benchmark`: the methods of this package, and what a user would do without them, on one dataset."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nnunetv2_conemos.benchmark.arms import configuration, perform
from nnunetv2_conemos.benchmark.config import Recipe, Run, TestSet
from nnunetv2_conemos.benchmark.config_file import grown, read_recipe, recipe_text
from nnunetv2_conemos.benchmark.ledger import Ledger, read_table
from nnunetv2_conemos.benchmark.report import AGAINST_K
from nnunetv2_conemos.benchmark.workspace import PARTIAL, Workspace, prepare
from nnunetv2_conemos.files import remove, write_aside
from nnunetv2_conemos.subprocesses import CommandError

RECIPE = "benchmark.yaml"
PLAIN: dict[str, Any] = {"style": "red", "markup": False, "highlight": False}


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """One benchmark at a time in a folder, counting commands that outlive a killed one; raises FileExistsError."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECIPE).is_file():
        raise FileExistsError(f"{folder} is not empty and holds no {RECIPE}. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        yield None
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FileExistsError(
                f"{folder}: a benchmark runs here, or a training that one left behind. Wait for it, or end it."
            ) from None
        yield file.fileno()


def make_room(folder: Path, recipe: Recipe) -> Recipe:
    """Write the recipe, and return it with what the folder compared before; what was prepared for another one is
    deleted, unless something was trained for it already.
    """
    file = folder / RECIPE
    if file.is_file() and ((folder / "runs.csv").is_file() or any((folder / "runs").glob("*"))):
        recipe = grown(recipe, read_recipe(file, {}), file)
    elif not file.is_file() or read_recipe(file, {}) != recipe:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "test"):
            remove(folder / name)
    write_aside(file, lambda aside: aside.write_text(recipe_text(recipe)))
    return recipe


def run_all(place: Workspace, runs: Sequence[Run], test: TestSet) -> list[Run]:
    """Perform those that are not done yet, behind a progress bar; returns those that failed."""
    ledger, failed, console = Ledger(place.folder), [], Console(soft_wrap=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        *columns, TextColumn("{task.description}", markup=False), console=console, speed_estimate_period=1e9
    ) as bar:
        task = bar.add_task("preparing", total=len(runs))
        place.tell = lambda line: bar.update(task, description=line[: max(20, console.width - 55)])
        prepare(place)
        missing = [run for run in runs if not ledger.is_done(run)]
        bar.update(task, total=len(missing))
        for run in missing:
            console.print(f"{run.folder}", style="bold", markup=False)
            try:
                enter(place, ledger, run, test)
            except Exception as error:  # whatever it is, the other arms go on
                failed.append(run)
                ledger.enter_failure(run, reason(error), facts(place, run))
                console.print(f"did not run: {error!r}" if not str(error) else f"did not run: {error}", **PLAIN)
            bar.advance(task)
        try:
            write_costs_against_k(place)
        except CommandError as error:
            console.print(f"no costs against the number of labels: {error}", **PLAIN)
    return failed


def write_costs_against_k(place: Workspace) -> None:
    """For the trainers of the recipe, at its configuration, in a process of its own."""
    trainers = dict.fromkeys(arm.trainer for arm in place.recipe.arms)
    file = place.folder / AGAINST_K
    if file.is_file() and set(trainers) <= set(pd.read_csv(file)["trainer"]):
        return
    plans = place.preprocessed / PARTIAL / f"{place.recipe.plans}.json"
    what = (plans, place.recipe.configuration, str(len(place.dataset_json["channel_names"])), place.device)
    module = (sys.executable, "-m", "nnunetv2_conemos.benchmark.scaling")
    place.command("costs_against_k", *module, file, *what, *trainers)


def reason(error: Exception) -> str:
    """One line that says why a run failed: of a command, its exit status and the first error in its log."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or [repr(error)]
    if not isinstance(error, CommandError):
        return lines[0][:500]
    status = re.search(r"ended with status (-?\d+)", lines[0])
    named = [line for line in error.log.splitlines() if re.match(r"[\w.]+(Error|Exception): |conemos \w+: ", line)]
    return f"status {status[1] if status else '?'}: {(named or lines[-1:])[0]}"[:500]


def facts(place: Workspace, run: Run) -> dict[str, Any]:
    name = configuration(place, run)
    return {"configuration": name, "plans_hash": place.plans_hash(name), "device": device_name(place.device)}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def enter(place: Workspace, ledger: Ledger, run: Run, test: TestSet) -> None:
    """Perform a run, evaluate its predictions, and enter it into the ledger."""
    costs = perform(place, run, test.images)
    predictions = place.run_folder(run) / "predictions"
    dataset_json = place.raw / PARTIAL / "dataset.json"
    what = (test.labels, predictions, "--complete", "-djfile", dataset_json, "--tolerance", str(place.recipe.tolerance))
    where = ("-np", str(place.processes), "--overwrite")
    place.command(f"{run.folder}_evaluate", "conemos", "evaluate", *what, *where)
    ledger.enter(run, read_table(predictions / "evaluation.csv"), {**costs, **facts(place, run)})
