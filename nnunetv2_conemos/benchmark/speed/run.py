"""Measure time and memory against the number of labels, all arms in turn, as multiples of stock nnU-Net's."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nnunetv2_conemos.benchmark.speed import case
from nnunetv2_conemos.benchmark.speed.arms import Arm, trainer_class
from nnunetv2_conemos.benchmark.speed.compiled import unlimited_recompilation
from nnunetv2_conemos.benchmark.speed.loaders import measure_loaders
from nnunetv2_conemos.benchmark.speed.profiles import write_profile
from nnunetv2_conemos.benchmark.speed.report import COLUMNS, RESULTS, with_ratios, write_results
from nnunetv2_conemos.benchmark.speed.settings import SpeedSettings
from nnunetv2_conemos.benchmark.speed.timing import Work, allocated, first_call, take_turns
from nnunetv2_conemos.benchmark.speed.world import (
    dataset_of,
    nnunet_environment,
    plans_of,
    write_case,
    write_dataset,
)
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.errors import UnsupportedError
from nnunetv2_conemos.files import exclusive, require_absent
from nnunetv2_conemos.text_files import read_object
from nnunetv2_conemos.training.variants import STOCK

Report = Callable[[str], object]
Row = dict[str, Any]


@dataclass(frozen=True)
class SpeedResult:
    """`table`: one row for each arm and number of labels; `loaders`: one for each arm, where a dataset was given."""

    table: pd.DataFrame
    loaders: pd.DataFrame
    files: list[Path]


def measure_speed(
    output: Path | str, settings: SpeedSettings | None = None, report: Report = print, *, overwrite: bool = False
) -> SpeedResult:
    """Measure, and write speed.csv, speed.json, speed.png and log.txt into the folder `output`.

    The files are written anew after each number of labels, so that an interrupted run leaves what it measured. An arm
    that refuses the plans or the number of labels, runs out of memory or exceeds the cap has a `note` that says so.
    Raises ValueError for unknown arms, FileNotFoundError for a dataset that was not planned, and FileExistsError for
    results that are there already unless `overwrite`.
    """
    chosen, folder = settings or SpeedSettings(), Path(output)
    register_trainers()
    for name in chosen.names:
        trainer_class(name)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / RESULTS):
        require_absent(folder / RESULTS, overwrite)
        return measure_all(folder, chosen, report)


def measure_all(folder: Path, chosen: SpeedSettings, report: Report) -> SpeedResult:
    """Measure the loaders, then the networks for one number of labels after the other."""
    if chosen.device == "cuda":
        torch.backends.cudnn.benchmark = True  # as nnU-Net does
    loaders = pd.DataFrame()
    with (folder / "log.txt").open("w") as log, tempfile.TemporaryDirectory() as world, redirect_stdout(log):
        shared = shared_plans(chosen, Path(world))
        if chosen.dataset is not None and "loader" in chosen.what:
            loaders = measure_loaders(chosen, Path(world) / "loaders", report)
        else:
            report("loaders: not measured, they need a preprocessed dataset (-d)")
        rows: list[Row] = []
        for labels in chosen.labels_counts:
            rows += measure_labels(labels, chosen, shared, Path(world), folder, report)
            table = with_ratios(pd.DataFrame(rows, columns=pd.Index(COLUMNS)))
            files = write_results(folder, table, loaders, chosen)
    return SpeedResult(table, loaders, files)


def shared_plans(settings: SpeedSettings, world: Path) -> dict[str, Any]:
    """Return the plans of all arms; those of a dataset are looked up in the user's folders."""
    if settings.dataset is not None:
        return plans_of(settings, world)
    with nnunet_environment(world, False):
        return plans_of(settings, world)


def measure_labels(
    labels: int, settings: SpeedSettings, plans: dict[str, Any], world: Path, output: Path, report: Report
) -> list[Row]:
    """Return one row for each arm: what it measured with this number of labels."""
    channels = len(plans["configurations"][settings.configuration]["normalization_schemes"])
    dataset_json = dataset_of(labels, channels)
    rows: dict[str, Row] = {name: {"arm": name, "labels": labels, "note": ""} for name in settings.names}
    with nnunet_environment(world, settings.compiled and settings.device == "cuda"):
        shared = plans | {"dataset_name": write_dataset(world, plans, settings.configuration, dataset_json)}
        with unlimited_recompilation():
            models = measure_networks(rows, settings, shared, dataset_json, output, report)
        torch.cuda.empty_cache()
        if models:
            images = world / "case"
            if not images.is_dir():
                write_case(images, plans, settings.configuration, settings.shape, channels)
            measure_cases(models, images, world / f"predicted_{labels}", rows, settings, report)
    return list(rows.values())


def measure_networks(
    rows: dict[str, Row],
    settings: SpeedSettings,
    plans: dict[str, Any],
    dataset_json: dict[str, Any],
    output: Path,
    report: Report,
) -> dict[str, Path]:
    """Fill in steps, tiles and parameters; return the model folders of the arms, where whole cases are wanted."""
    arms: dict[str, Arm] = {}
    work: dict[tuple[str, str], Work] = {}
    for name, row in rows.items():
        report(f"K = {row['labels']}: {name}, first calls")
        base = allocated(settings.device)
        try:
            arms[name] = Arm(name, plans, settings.configuration, dataset_json, settings.device)
        except (UnsupportedError, ValueError) as error:
            row["note"] = f"refused: {error}"
            continue
        row["parameters"] = arms[name].parameters
        work |= first_calls(arms[name], row, settings, base)
    labels = len(dataset_json["labels"]) - 1
    turns = take_turns(work, settings.device, settings.rounds, settings.cap, lambda t: report(f"K = {labels}: {t}"))
    for (name, what), measured in turns.items():
        rows[name][f"{what}_s"] = measured.seconds
        add_note(rows[name], what, measured.note)
    if "step" in settings.what:
        for name, arm in arms.items():
            counts = arm.compiled
            rows[name] |= {"graphs": counts.graphs, "graph_breaks": counts.breaks}
            rows[name] |= {"recompilations": counts.recompilations}
    if settings.profile:
        for name in arms:
            calls = {what: call for (of, what), call in work.items() if of == name}
            write_profile(output / f"profile_{name}_{labels}.txt", calls, settings.device)
    return {name: arm.save() for name, arm in arms.items()} if "case" in settings.what else {}


def first_calls(arm: Arm, row: Row, settings: SpeedSettings, base: int) -> dict[tuple[str, str], Work]:
    """Make the first steps and tiles of an arm, note their memory, and return those that worked."""
    calls: dict[str, Work] = {"step": arm.step} if arm.trainable else {}
    calls["tile"] = arm.tile
    weights = sum(parameter.nbytes for parameter in arm.bare.parameters())
    work: dict[tuple[str, str], Work] = {}
    for what, call in calls.items():
        if what not in settings.what:
            continue
        held = base if what == "step" else allocated(settings.device) - weights
        row[f"{what}_mib"], note = first_call(call, settings.device, held)
        add_note(row, what, note)
        if not note:
            work[arm.name, what] = call
    if not arm.trainable and "step" in settings.what:
        add_note(row, "step", "not measured, it needs more than random patches")
    return work


def measure_cases(
    models: dict[str, Path], images: Path, target: Path, rows: dict[str, Row], settings: SpeedSettings, report: Report
) -> None:
    """Predict the whole case with each model, from file to file, in a process of its own, both ways.

    For stock nnU-Net these are one, whose values stand for both.
    """
    for name, model in models.items():
        ways: tuple[case.Way, ...] = ("nnunet",) if name == STOCK else ("nnunet", "conemos")
        for way in ways:
            what = "case" if way == "conemos" else "nnunet_case"
            report(f"K = {rows[name]['labels']}: {name}, a whole case, {way}")
            measured, written = target.with_name(f"{target.name}_{name}_{way}.json"), target / name / way
            command = case.words(measured, model, images, written, settings.device, settings.step_size, way)
            try:
                predict_case(command, settings.cap)
                rows[name] |= {f"{what}_{key}": value for key, value in read_object(measured).items()}
            except subprocess.TimeoutExpired:
                add_note(rows[name], what, f"over the cap of {settings.cap:g} s")
            except subprocess.CalledProcessError as error:
                lines = (error.stderr or "").strip().splitlines() or [f"ended with status {error.returncode}"]
                add_note(rows[name], what, "out of memory" if error.returncode == -9 else lines[-1])
        if name == STOCK:
            rows[name] |= {key.removeprefix("nnunet_"): value for key, value in rows[name].items()}


def predict_case(command: Sequence[str], cap: float) -> None:
    """Run the prediction of one case; raises TimeoutExpired or CalledProcessError."""
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=cap)


def add_note(row: Row, what: str, note: str) -> None:
    """Add why a value is missing or uncertain."""
    if note:
        row["note"] = "; ".join(filter(None, [row["note"], f"{what}: {note}"]))
