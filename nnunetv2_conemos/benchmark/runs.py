"""One network of an arm: trained, and asked for the test cases, by nnU-Net in processes that measure what it costs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_conemos.benchmark.config import Recipe, Run, slug
from nnunetv2_conemos.benchmark.workspace import MODALITIES, Workspace
from nnunetv2_conemos.files import new_folder, remove, write_json
from nnunetv2_conemos.networks.spec import MODALITY_VARIABLE, PLANS_KEY, UNKNOWN
from nnunetv2_conemos.training.variants import variant

STEPS_PER_EPOCH = 250  # nnU-Net's
Costs = dict[str, Any]


class Model(NamedTuple):
    """One network of a run: where its results and preprocessed cases are, and what trains it."""

    run: Run
    dataset: str
    trainer: str
    results: Path
    preprocessed: Path
    configuration: str

    def variant(self, recipe: Recipe) -> str:
        optimiser = self.run.arm.optimiser or recipe.optimiser
        return variant(self.trainer, self.run.epochs, recipe.mirroring, optimiser == "AdamW")

    def words(self, place: Workspace) -> tuple[str, ...]:
        """-tr, -p and -device of nnU-Net's commands."""
        return ("-tr", self.variant(place.recipe), "-p", place.recipe.plans, "-device", place.device)

    def folder(self, recipe: Recipe) -> Path:
        return self.results / self.dataset / f"{self.variant(recipe)}__{recipe.plans}__{self.configuration}"


def train(place: Workspace, model: Model) -> Costs:
    """Train, or go on with a training that was interrupted; returns what it cost."""
    report = model.folder(place.recipe) / f"fold_{model.run.fold}_costs.json"
    steps = model.run.epochs * STEPS_PER_EPOCH
    if not report.is_file():
        report.parent.mkdir(parents=True, exist_ok=True)
        what = ("train", model.dataset, model.configuration, str(model.run.fold), *model.words(place))
        measured(place, model, f"{model.run.folder}_{model.dataset}_train", report, what)
    return {"networks": 1, "steps": steps, **json.loads(report.read_text())}


def train_and_predict(place: Workspace, model: Model, images: Path, output: Path, probabilities: bool = False) -> Costs:
    """Train a network and predict the test images into a folder; returns the costs of both."""
    costs = train(place, model)
    report = output.with_name(f"{output.name}.json")
    if not report.is_file():
        remove(output)
        parts = by_modality(place, model, images)
        spent = [predict(place, model, part, output, told, probabilities) for told, part in parts.items()]
        whole = {"predict_s": sum(cost["predict_s"] for cost in spent)}
        peaks = [cost["predict_peak_mib"] for cost in spent if "predict_peak_mib" in cost]
        write_json(report, {**whole, **({"predict_peak_mib": max(peaks)} if peaks else {})})
    return costs | json.loads(report.read_text())


def by_modality(place: Workspace, model: Model, images: Path) -> dict[str | None, Path]:
    """Modality that a network is told -> folder of the test images that have it; None: it is told nothing."""
    file, plans = images.parent / MODALITIES, model.folder(place.recipe) / "plans.json"
    told = json.loads(plans.read_text()).get(PLANS_KEY, {}).get("modalities") if plans.is_file() else None
    if not (told and file.is_file()):
        return {None: images}
    cases: dict[str | None, list[str]] = {}
    for case, modality in json.loads(file.read_text()).items():
        cases.setdefault(modality if modality in told else UNKNOWN, []).append(case)
    return {name: linked(images, own, images.parent / f"images_{slug(str(name))}") for name, own in cases.items()}


def linked(images: Path, cases: Sequence[str], folder: Path) -> Path:
    """A folder of links to the images of some cases."""
    if not folder.is_dir():
        with new_folder(folder) as aside:
            for file in (file for case in cases for file in images.glob(f"{escape(case)}_[0-9][0-9][0-9][0-9].*")):
                (aside / file.name).symlink_to(file.resolve())
    return folder


def predict(
    place: Workspace, model: Model, images: Path, output: Path, modality: str | None, probabilities: bool
) -> Costs:
    more = (
        *(() if place.recipe.tta else ("--disable_tta",)),
        *(("--save_probabilities",) if probabilities else ()),
    )
    which = ("-d", model.dataset, "-c", model.configuration, "-f", str(model.run.fold), *model.words(place))
    few = ("-npp", "1", "-nps", "1", "--disable_progress_bar", *more)
    what = ("predict", "-i", str(images), "-o", str(output), *which, *few)
    told = {} if modality is None else {MODALITY_VARIABLE: modality}
    report = output.with_name(f"{output.name}_costs.json")
    measured(place, model, f"{model.run.folder}_{output.name}", report, what, **told)
    return json.loads(report.read_text())


def measured(place: Workspace, model: Model, log: str, report: Path, what: Sequence[str], **variables: str) -> None:
    """Run nnU-Net in a process that measures what it costs."""
    words = (sys.executable, "-m", "nnunetv2_conemos.benchmark.measure", report, str(model.run.seed), *what)
    where = {"nnUNet_results": str(model.results), "nnUNet_preprocessed": str(model.preprocessed)}
    place.command(log, *words, variables={**where, **variables})
