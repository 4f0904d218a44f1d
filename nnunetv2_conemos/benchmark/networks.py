"""Train one network of an arm and predict the test cases with it, in processes that measure nnU-Net's cost."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_conemos.benchmark.config import Recipe, Run, slug
from nnunetv2_conemos.benchmark.runner import Runner
from nnunetv2_conemos.benchmark.workspace import MODALITIES
from nnunetv2_conemos.files import new_folder, remove, write_json
from nnunetv2_conemos.networks.spec import MODALITY_VARIABLE, PLANS_KEY, UNKNOWN
from nnunetv2_conemos.text_files import read_object
from nnunetv2_conemos.training.variants import variant

STEPS_PER_EPOCH = 250  # nnU-Net's
Costs = dict[str, Any]


class Network(NamedTuple):
    """One network of a run: its trainer, its dataset, and where its results and preprocessed cases lie."""

    run: Run
    recipe: Recipe
    dataset: str
    trainer: str
    results: Path
    preprocessed: Path
    configuration: str

    @property
    def variant(self) -> str:
        """The trainer's variant with the recipe's epochs, mirroring and optimiser."""
        optimiser = self.run.arm.optimiser or self.recipe.optimiser
        return variant(self.trainer, self.run.epochs, self.recipe.mirroring, optimiser == "AdamW")

    @property
    def folder(self) -> Path:
        """The model folder, as nnU-Net names it."""
        return self.results / self.dataset / f"{self.variant}__{self.recipe.plans}__{self.configuration}"

    @property
    def variables(self) -> dict[str, str]:
        return {"nnUNet_results": str(self.results), "nnUNet_preprocessed": str(self.preprocessed)}


def train(runner: Runner, network: Network) -> Costs:
    """Train, or resume an interrupted training; return the cost. Raises CommandError."""
    run, report = network.run, network.folder / f"fold_{network.run.fold}_costs.json"
    if not report.is_file():
        report.parent.mkdir(parents=True, exist_ok=True)
        what = (network.dataset, network.configuration, str(run.fold), network.variant, network.recipe.plans)
        log = f"{run.folder}_{network.dataset}_train"
        measured(runner, log, report, run.seed, ("train", *what, runner.device), network.variables)
    return {"networks": 1, "steps": run.epochs * STEPS_PER_EPOCH, **read_object(report)}


def train_and_predict(
    runner: Runner, network: Network, images: Path, output: Path, probabilities: bool = False
) -> Costs:
    """Train a network and predict the test images into `output`; return the costs of both. Raises CommandError."""
    costs = train(runner, network)
    report = output.with_name(f"{output.name}.json")
    if not report.is_file():
        remove(output)
        parts = by_modality(network, images)
        spent = [predict(runner, network, part, output, modality, probabilities) for modality, part in parts.items()]
        whole = {"predict_s": sum(cost["predict_s"] for cost in spent)}
        peaks = [cost["predict_peak_mib"] for cost in spent if "predict_peak_mib" in cost]
        write_json(report, {**whole, **({"predict_peak_mib": max(peaks)} if peaks else {})})
    return costs | read_object(report)


def by_modality(network: Network, images: Path) -> dict[str | None, Path]:
    """Return modality -> folder of the test images that have it.

    Networks that are not conditioned on the modality get all images at once, under None.
    """
    file, plans = images.parent / MODALITIES, network.folder / "plans.json"
    known = read_object(plans).get(PLANS_KEY, {}).get("modalities") if plans.is_file() else None
    if not (known and file.is_file()):
        return {None: images}
    cases: dict[str | None, list[str]] = {}
    for case, modality in read_object(file).items():
        cases.setdefault(modality if modality in known else UNKNOWN, []).append(case)
    numbers = {name: number for number, name in enumerate([UNKNOWN, *known])}  # two names may be one in a file name
    folders = {name: f"images_{numbers[name]}_{slug(str(name))}" for name in cases}
    return {name: linked(images, own, images.parent / folders[name]) for name, own in cases.items()}


def linked(images: Path, cases: Sequence[str], folder: Path) -> Path:
    """Make a folder of links to the images of some cases, unless that was done."""
    if not folder.is_dir():
        with new_folder(folder) as aside:
            for file in (file for case in cases for file in images.glob(f"{escape(case)}_[0-9][0-9][0-9][0-9].*")):
                (aside / file.name).symlink_to(file.resolve())
    return folder


def predict(
    runner: Runner, network: Network, images: Path, output: Path, modality: str | None, probabilities: bool
) -> Costs:
    """Predict the images of one modality (None: of any) into `output`; return the cost. Raises CommandError."""
    run, recipe = network.run, network.recipe
    model = ("-d", network.dataset, "-c", network.configuration, "-f", str(run.fold), "-tr", network.variant)
    options = [] if recipe.tta else ["--disable_tta"]
    options += ["--save_probabilities"] if probabilities else []
    where = ("-i", str(images), "-o", str(output), "-p", recipe.plans, "-device", runner.device)
    what = ("predict", *where, *model, "-npp", "1", "-nps", "1", "--disable_progress_bar", *options)
    given = {} if modality is None else {MODALITY_VARIABLE: modality}
    report = output.with_name(f"{output.name}_costs.json")
    measured(runner, f"{run.folder}_{output.name}", report, run.seed, what, {**network.variables, **given})
    return read_object(report)


def measured(
    runner: Runner, log: str, report: Path, seed: int, what: Sequence[str], variables: Mapping[str, str]
) -> None:
    """Run nnU-Net in a process that writes its cost to `report`; see `measure`."""
    words = (sys.executable, "-m", "nnunetv2_conemos.benchmark.measure", report, str(seed), *what)
    runner.run(log, *words, variables=variables)
