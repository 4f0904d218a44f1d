"""A temporary world of nnU-Net: folders, plans, and a dataset of K labels that trainers can be made on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnunetv2_conemos.benchmark.speed.settings import SpeedSettings
from nnunetv2_conemos.datasets.folders import dataset_name, preprocessed_folder
from nnunetv2_conemos.datasets.phantom import make_case
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.environment import variables
from nnunetv2_conemos.errors import InputError, MissingFileError
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.subprocesses import FOLDERS
from nnunetv2_conemos.text_files import read_object

CASES = 2  # training cases of a generated dataset; only their names are used
PLANNED_SIDE, SPACING = 160, 1.5  # voxels and mm: nnU-Net plans patches of 128x128x128 voxels, as for a body CT
PLANNED_LABELS = 5
COARSER = 1.25  # voxels of the whole case on disk, in units of the planned ones: it is resampled there and back
INTENSITIES = {
    "mean": 80.0, "median": 80.0, "std": 60.0, "min": -1000.0, "max": 500.0,
    "percentile_00_5": -100.0, "percentile_99_5": 300.0,
}  # fmt: skip


@contextmanager
def nnunet_environment(folder: Path, compiled: bool, set_folders: Sequence[str] = FOLDERS) -> Iterator[None]:
    """Set nnU-Net's folders below `folder` and whether it compiles, within the block."""
    values = {name: str(folder / name) for name in set_folders} | {"nnUNet_compile": "t" if compiled else "f"}
    for name in set_folders:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with variables(values):
        yield


def dataset_of(labels: int, channels: int = 1) -> dict[str, Any]:
    """Return the dataset.json of K labels, all of them annotated."""
    return {
        "channel_names": {str(channel): "CT" for channel in range(channels)},
        "labels": {"background": 0} | {f"label_{k}": k for k in range(1, labels + 1)},
        "numTraining": 100,  # nnU-Net's planner limits the batch by it
        "file_ending": ".nii.gz",
    }


def write_dataset(folder: Path, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> str:
    """Write what trainers read before the first batch, below nnU-Net's folders in `folder`; return the dataset's name.

    Its preprocessed cases are empty files: batches are generated.
    """
    name = f"Dataset{len(dataset_json['labels']) - 1:03d}_Speed"
    raw, preprocessed = folder / "nnUNet_raw" / name, folder / "nnUNet_preprocessed" / name
    data = preprocessed / plans["configurations"][configuration]["data_identifier"]
    for new in (raw, data):
        new.mkdir(parents=True, exist_ok=True)
    for place in (raw, preprocessed):
        write_json(place / "dataset.json", dataset_json)
    for number in range(CASES):
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (data / f"case_{number}{ending}").touch()
    return name


def plans_of(settings: SpeedSettings, folder: Path) -> dict[str, Any]:
    """Return the plans that all arms share, with one configuration, all of whose entries are written out.

    They are those of the dataset, or nnU-Net's own for a generated volume. Raises FileNotFoundError where the dataset
    was not planned, ValueError where the plans lack the configuration.
    """
    if settings.dataset is None:
        plans = default_plans(folder)
        if settings.device != "cuda":
            plans["configurations"]["small"] = small_configuration(
                plans, "3d_fullres", settings.features, settings.patch, batch=2
            )
            plans["configurations"]["3d_fullres"] |= plans["configurations"]["small"]
            del plans["configurations"]["3d_fullres"]["inherits_from"]
    else:
        name = dataset_name(settings.dataset)
        preprocessed = preprocessed_folder(name)
        file = preprocessed and preprocessed / f"{settings.plans}.json"
        if file is None or not file.is_file():
            raise MissingFileError(f"{name} has no {settings.plans}.json. Run nnUNetv2_plan_and_preprocess -d {name}.")
        plans = read_object(file)
    known = plans["configurations"]
    if settings.configuration not in known:
        raise InputError(f"-c {settings.configuration}: the plans have {', '.join(known)}.")
    return {key: value for key, value in plans.items() if key != PLANS_KEY}


def default_plans(folder: Path) -> dict[str, Any]:
    """Let nnU-Net plan for volumes of 160x160x160 voxels of 1.5 mm with 5 labels."""
    dataset_json = dataset_of(PLANNED_LABELS)
    name = "Dataset900_Planned"
    raw, preprocessed = folder / "nnUNet_raw" / name, folder / "nnUNet_preprocessed" / name
    for new in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        new.mkdir(parents=True, exist_ok=True)
    write_json(raw / "dataset.json", dataset_json)
    for file in ("imagesTr/case_0000.nii.gz", "labelsTr/case.nii.gz"):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 4, 4), np.float32)), str(raw / file))
    fingerprint = {
        "spacings": [[SPACING] * 3],
        "shapes_after_crop": [[PLANNED_SIDE] * 3],
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(preprocessed / "dataset_fingerprint.json", fingerprint)
    ExperimentPlanner(name).plan_experiment()
    return read_object(preprocessed / "nnUNetPlans.json")


def plans_for(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a copy of the shared plans for a dataset, as nnUNetv2_train hands it to a trainer."""
    return deepcopy(plans) | {"dataset_name": name, "continue_training": False}


def write_case(folder: Path, plans: dict[str, Any], configuration: str, shape: tuple[int, ...], channels: int) -> None:
    """Write the raw image of a generated abdomen that has `shape` voxels after resampling."""
    folder.mkdir(parents=True, exist_ok=True)
    planned = plans["configurations"][configuration]["spacing"]
    spacing = ([max(planned)] * (3 - len(planned)) + list(planned))[:3]
    before = tuple(max(8, round(side / COARSER)) for side in shape)
    array, _ = make_case(np.random.default_rng(0), (before[0], before[1], before[2]))
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([side * COARSER for side in spacing[::-1]])
    for channel in range(channels):
        SimpleITK.WriteImage(image, str(folder / f"case_{channel:04d}.nii.gz"))
