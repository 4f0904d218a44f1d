"""How an arm gets its predictions of the test cases, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.benchmark.config import Fold, Run
from nnunetv2_conemos.benchmark.derived_datasets import annotated_dataset, complete_dataset, one_label_dataset
from nnunetv2_conemos.benchmark.runs import Costs, Model, train, train_and_predict
from nnunetv2_conemos.benchmark.workspace import COMPLETED, PARTIAL, Workspace
from nnunetv2_conemos.datasets.writer import reader_of, write_seg
from nnunetv2_conemos.files import new_folder, write_json


def perform(place: Workspace, run: Run, images: Path) -> Costs:
    """Train an arm and predict the test images into `predictions` of the run's folder; returns what it cost.

    What an earlier, interrupted call has finished is not done again. Raises CommandError where nnU-Net fails, and
    ValueError or OSError where the arm cannot run on this dataset.
    """
    folder = place.run_folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    return ARMS.get(run.arm.kind, on_one_dataset)(place, run, images, folder)


def on_one_dataset(place: Workspace, run: Run, images: Path, folder: Path) -> Costs:
    """One network, on the partially labelled dataset or on what its kind makes of that."""
    choose = DATASETS.get(run.arm.kind)
    dataset = choose(place, run.fold) if choose else PARTIAL
    place.preprocess(dataset, configuration(place, run))
    model = model_of(place, run, dataset)
    if run.arm.prediction:
        borrow(place, model_of(place, run._replace(arm=run.arm.trained), dataset), model)
    return train_and_predict(place, model, images, folder / "predictions")


def borrow(place: Workspace, trained: Model, model: Model) -> None:
    """Give `model` the network of `trained`, trained now if it was not, with the options that hold at prediction."""
    train(place, trained)
    source, target = trained.folder(place.recipe), model.folder(place.recipe)
    if target.is_dir():
        return
    plans = json.loads((source / "plans.json").read_text())
    options = place.plans["configurations"][model.run.arm.prediction].get("conemos", {})
    plans["configurations"][trained.configuration]["conemos"] = options
    with new_folder(target) as aside:
        write_json(aside / "plans.json", plans)
        for file in source.iterdir():
            if file.name != "plans.json":
                (aside / file.name).symlink_to(file)


def on_completed(place: Workspace, run: Run, images: Path, folder: Path) -> Costs:
    """The teacher is the run of its own arm, trained now if it was not; the student's costs are those at the end."""
    teacher = model_of(place, run._replace(arm=run.arm.teacher), PARTIAL)
    place.preprocess(PARTIAL, teacher.configuration)
    supervised = train(place, teacher)
    own = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    raw, preprocessed = (Path(path) for path in own.values())
    if not (raw / COMPLETED).is_dir():
        raw.mkdir(exist_ok=True)
        words = ("-m", teacher.folder(place.recipe), "-d", place.raw / PARTIAL, "-o", COMPLETED, "-f", str(run.fold))
        tta = () if place.recipe.tta else ("--disable_tta",)
        few = ("-device", place.device, "-npp", "1", "-nps", "1", *tta)
        place.command(f"{run.folder}_complete", "conemos", "complete", *words, *few, variables=own)
    place.share_plans(COMPLETED, run.fold, raw, preprocessed)
    place.preprocess(COMPLETED, configuration(place, run), preprocessed, **own)
    student = model_of(place, run, COMPLETED, preprocessed)
    costs = train_and_predict(place, student, images, folder / "predictions")
    return costs | {"networks": 2, "steps": costs["steps"] + supervised["steps"]}


def per_label(place: Workspace, run: Run, images: Path, folder: Path) -> Costs:
    names, costs = [], []
    for k in range(1, len(place.labels) + 1):
        dataset = one_label_dataset(place, k, run.fold)
        place.preprocess(dataset, configuration(place, run))
        model = model_of(place, run, dataset)
        names.append(folder / f"predictions_{k}")
        costs.append(train_and_predict(place, model, images, names[-1], probabilities=True))
    if not (folder / "predictions").is_dir():
        join_labels(place, names, folder / "predictions")
    for name in names:
        for file in name.glob("*.npz"):  # large
            file.unlink()
    return {
        "networks": len(costs),
        **{key: sum(c[key] for c in costs) for key in ("parameters", "predict_s", "steps")},
        "step_s": float(np.median([c["step_s"] for c in costs])),
        **{key: max(c[key] for c in costs) for key in ("train_peak_mib", "predict_peak_mib") if key in costs[0]},
    }


ARMS: Mapping[str, Callable[[Workspace, Run, Path, Path], Costs]] = {
    "per-label": per_label,
    "completed": on_completed,
}
DATASETS: Mapping[str, Callable[[Workspace, Fold], str]] = {
    "annotated-only": annotated_dataset,
    "ceiling": complete_dataset,
}


def configuration(place: Workspace, run: Run) -> str:
    return run.arm.configuration or place.recipe.configuration


def model_of(place: Workspace, run: Run, dataset: str, preprocessed: Path | None = None) -> Model:
    results = place.run_folder(run) / "nnUNet_results"
    where = preprocessed or place.preprocessed
    return Model(run, dataset, run.arm.trainer, results, where, configuration(place, run))


def join_labels(place: Workspace, folders: Sequence[Path], output: Path) -> None:
    """Maps of K networks with one label each as one."""
    ending = place.dataset_json["file_ending"]
    manager = PlansManager(place.plans).get_label_manager(place.dataset_json)
    examples = sorted(folders[0].glob(f"*{ending}"))
    reader = reader_of(place.dataset_json, examples[0])
    values: Any = manager.regions_class_order if manager.has_regions else manager.foreground_labels
    with new_folder(output) as aside:
        for file in examples:
            case = file.name.removesuffix(ending)
            found = (np.load(folder / f"{case}.npz")["probabilities"][1] for folder in folders)
            grid = reader.read_seg(str(file))[1]
            write_seg(reader, joined(found, values, manager.has_regions), aside / file.name, grid)
        write_json(aside / "dataset.json", place.dataset_json)


def joined(probabilities: Iterable[np.ndarray], values: Sequence[int], overlap: bool) -> np.ndarray:
    """Label map [*S] from one probability map [*S] per label: the likeliest above one half wins.

    Labels that overlap (regions) are written one over the other, as nnU-Net does. One map is held at a time.
    """
    segmentation, best = np.zeros(0), np.zeros(0)
    for number, (value, likely) in enumerate(zip(values, probabilities, strict=True)):
        if number == 0:
            segmentation, best = np.zeros(likely.shape, np.uint16), np.full(likely.shape, 0.5, likely.dtype)
        here = likely > best
        segmentation[here] = value
        if not overlap:
            best[here] = likely[here]
    return segmentation
