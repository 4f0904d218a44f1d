"""Compute the predictions of an arm for the test cases, and their cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.benchmark.config import Fold, Run
from nnunetv2_conemos.benchmark.derived_datasets import annotated_dataset, complete_dataset, one_label_dataset
from nnunetv2_conemos.benchmark.networks import Costs, Network, train, train_and_predict
from nnunetv2_conemos.benchmark.preparation import preprocess, share_plans
from nnunetv2_conemos.benchmark.runner import Runner
from nnunetv2_conemos.benchmark.workspace import PARTIAL, Workspace
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.datasets.volumes import read_label_map, write_label_map
from nnunetv2_conemos.files import new_folder, write_json
from nnunetv2_conemos.text_files import read_object

COMPLETED = "Dataset902_Completed"


def perform(workspace: Workspace, runner: Runner, run: Run, images: Path) -> Costs:
    """Train an arm and predict the test images into `predictions` of the run's folder; return the cost.

    Steps that an earlier, interrupted call has finished are not repeated. Raises CommandError where nnU-Net fails, and
    ValueError or OSError where the arm cannot run on this dataset.
    """
    workspace.run_folder(run).mkdir(parents=True, exist_ok=True)
    return ARMS.get(run.arm.kind, on_one_dataset)(workspace, runner, run, images)


def on_one_dataset(workspace: Workspace, runner: Runner, run: Run, images: Path) -> Costs:
    """Train one network, on the partially labelled dataset or on the one that the kind of arm makes from it."""
    derive = DATASETS.get(run.arm.kind)
    dataset = derive(workspace, run.fold) if derive else PARTIAL
    preprocess(workspace, runner, dataset, workspace.configuration(run))
    network = network_of(workspace, run, dataset)
    if run.arm.prediction:
        trained = network_of(workspace, run._replace(arm=run.arm.trained), dataset)
        train(runner, trained)
        options = workspace.read_plans()["configurations"][run.arm.prediction].get("conemos", {})
        copy_with_options(trained, network.folder, options)
    return train_and_predict(runner, network, images, workspace.run_folder(run) / "predictions")


def copy_with_options(trained: Network, target: Path, options: Mapping[str, Any]) -> None:
    """Make a model folder of links to another one, with these options of the method in its plans."""
    if target.is_dir():
        return
    plans = read_object(trained.folder / "plans.json")
    plans["configurations"][trained.configuration]["conemos"] = options
    with new_folder(target) as aside:
        write_json(aside / "plans.json", plans)
        for file in trained.folder.iterdir():
            if file.name != "plans.json":
                (aside / file.name).symlink_to(file)


def on_completed(workspace: Workspace, runner: Runner, run: Run, images: Path) -> Costs:
    """Fill in the missing labels with the network of another arm, the teacher, then train stock nnU-Net on the result.

    The costs are those of the second network, except for the numbers of networks and steps.
    """
    recipe, folder = workspace.recipe, workspace.run_folder(run)
    teacher = network_of(workspace, run._replace(arm=run.arm.teacher), PARTIAL)
    preprocess(workspace, runner, PARTIAL, teacher.configuration)
    costs_of_teacher = train(runner, teacher)
    own = {name: str(folder / name) for name in ("nnUNet_raw", "nnUNet_preprocessed")}
    raw, preprocessed = (Path(path) for path in own.values())
    if not (raw / COMPLETED).is_dir():
        raw.mkdir(exist_ok=True)
        words = ("-m", teacher.folder, "-d", workspace.raw / PARTIAL, "-o", COMPLETED, "-f", str(run.fold))
        options = ("-device", runner.device, "-npp", "1", "-nps", "1", *(() if recipe.tta else ("--disable_tta",)))
        runner.run(f"{run.folder}_complete", "conemos", "complete", *words, *options, variables=own)
    share_plans(workspace, COMPLETED, run.fold, raw, preprocessed)
    preprocess(workspace, runner, COMPLETED, workspace.configuration(run), preprocessed, own)
    student = network_of(workspace, run, COMPLETED, preprocessed)
    costs = train_and_predict(runner, student, images, folder / "predictions")
    return costs | {"networks": 2, "steps": costs["steps"] + costs_of_teacher["steps"]}


def per_label(workspace: Workspace, runner: Runner, run: Run, images: Path) -> Costs:
    """Train one stock network per label, and give each voxel its most likely label."""
    folder, outputs, costs = workspace.run_folder(run), [], []
    for k in range(1, len(workspace.labels) + 1):
        dataset = one_label_dataset(workspace, k, run.fold, runner.processes)
        preprocess(workspace, runner, dataset, workspace.configuration(run))
        outputs.append(folder / f"predictions_{k}")
        network = network_of(workspace, run, dataset)
        costs.append(train_and_predict(runner, network, images, outputs[-1], probabilities=True))
    if not (folder / "predictions").is_dir():
        join_labels(workspace.read_plans(), workspace.dataset_json, outputs, folder / "predictions")
    for output in outputs:
        for file in output.glob("*.npz"):  # large
            file.unlink()
    return {
        "networks": len(costs),
        **{key: sum(c[key] for c in costs) for key in ("parameters", "predict_s", "steps")},
        "step_s": float(np.median([c["step_s"] for c in costs])),
        **{key: max(c[key] for c in costs) for key in ("train_peak_mib", "predict_peak_mib") if key in costs[0]},
    }


ARMS: Mapping[str, Callable[[Workspace, Runner, Run, Path], Costs]] = {
    "per-label": per_label,
    "completed": on_completed,
}
DATASETS: Mapping[str, Callable[[Workspace, Fold], str]] = {
    "annotated-only": annotated_dataset,
    "ceiling": complete_dataset,
}


def network_of(workspace: Workspace, run: Run, dataset: str, preprocessed: Path | None = None) -> Network:
    results = workspace.run_folder(run) / "nnUNet_results"
    where, configuration = preprocessed or workspace.preprocessed, workspace.configuration(run)
    return Network(run, workspace.recipe, dataset, run.arm.trainer, results, where, configuration)


def join_labels(plans: dict[str, Any], dataset_json: dict[str, Any], folders: Sequence[Path], output: Path) -> None:
    """Join the predictions of K single-label networks, one folder per network, into maps of all labels."""
    ending = dataset_json["file_ending"]
    manager = PlansManager(plans).get_label_manager(dataset_json)
    examples = sorted(folders[0].glob(f"*{ending}"))
    reader = reader_of(dataset_json, examples[0])
    values: Any = manager.regions_class_order if manager.has_regions else manager.foreground_labels
    with new_folder(output) as aside:
        for file in examples:
            case = file.name.removesuffix(ending)
            found = (np.load(folder / f"{case}.npz")["probabilities"][1] for folder in folders)
            properties = read_label_map(file, reader).properties
            label_map = joined(found, values, manager.has_regions)
            write_label_map(label_map, aside / file.name, reader, properties)
        write_json(aside / "dataset.json", dataset_json)


def joined(probabilities: Iterable[np.ndarray], values: Sequence[int], overlap: bool) -> np.ndarray:
    """Join one probability map [*S] per label into a label map [*S]: the most likely label above one half wins.

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
