"""Further configurations for nnU-Net's plans: smaller networks and patches, and patches that hold whole slices."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.datasets.folders import dataset_name, preprocessed_data, preprocessed_folder
from nnunetv2_conemos.errors import InputError, MissingFileError
from nnunetv2_conemos.files import exclusive, write_json
from nnunetv2_conemos.text_files import read_object

MULTIPLE = 8  # of both sides of a slice: CMER's networks halve them three times


def small_configuration(
    plans: dict[str, Any],
    base: str,
    features: int | None = None,
    patch: Sequence[int] | None = None,
    batch: int | None = None,
) -> dict[str, Any]:
    """Build an entry for `configurations` of the plans that inherits from `base`; arguments of None keep the plan.

    `features` are those of the first stage, doubled from stage to stage up to nnU-Net's limit (320 in 3D, 512 in 2D).
    Stages whose feature map would get smaller than 3 voxels along an axis of `patch` are dropped; the strides of the
    others must divide it. nnU-Net merges `inherits_from` key by key at the top only, so the architecture is written in
    full. Raises ValueError for a patch that the network cannot have.
    """
    planned = PlansManager(plans).get_configuration(base).configuration
    architecture = deepcopy(planned["architecture"])
    arguments = architecture["arch_kwargs"]
    size = list(patch or planned["patch_size"])
    shrunk = np.array(size) / np.cumprod(arguments["strides"], axis=0)  # [stages, axes]
    stages = arguments["n_stages"] if patch is None else int((shrunk >= 3).all(axis=1).sum())
    check_patch_size(size, planned["patch_size"], shrunk[:stages], base)
    for key, value in arguments.items():
        if isinstance(value, list) and len(value) == len(shrunk):
            arguments[key] = value[:stages]
        elif key == "n_conv_per_stage_decoder":
            arguments[key] = value[: stages - 1]
    arguments["n_stages"] = stages
    if features is not None:
        most = 512 if len(size) == 2 else 320
        arguments["features_per_stage"] = [min(features * 2**stage, most) for stage in range(stages)]
    return {
        "inherits_from": base,
        "patch_size": size,
        "batch_size": planned["batch_size"] if batch is None else batch,
        "architecture": architecture,
    }


def check_patch_size(size: Sequence[int], planned: Sequence[int], shrunk: np.ndarray, base: str) -> None:
    """Raise ValueError where a patch has the wrong number of axes, or where the strides do not divide it."""
    if len(size) != len(planned):
        raise InputError(f"patch_size {list(size)}: expected {len(planned)} numbers as in {base}, {list(planned)}.")
    if not len(shrunk) or (shrunk != shrunk.astype(int)).any():
        smallest = np.array(size) / (shrunk[-1] if len(shrunk) else 1)
        raise InputError(
            f"patch_size {list(size)}: expected multiples of {smallest.astype(int).tolist()}, by which the network of "
            f"{base} divides it."
        )


@dataclass(frozen=True)
class SlicesConfiguration:
    """A configuration for whole slices that was added to the plans `file`; `patch_size` is (height, width)."""

    file: Path
    dataset: str
    name: str
    patch_size: list[int]


def add_slices_configuration(
    dataset: str,
    *,
    base: str = "2d",
    plans: str = "nnUNetPlans",
    batch: int = 16,
    name: str | None = None,
    overwrite: bool = False,
) -> SlicesConfiguration:
    """Add a 2D configuration whose patch holds every slice to the plans of a preprocessed dataset (name or id).

    `base`: the 2D configuration whose preprocessed data it uses; `batch`: slices in a batch; `name` (None: that of
    `base` and _slices). Raises FileNotFoundError where plans or data are not there, ValueError for a `base` that is not
    2D, and for another configuration of that name without `overwrite`.
    """
    full_name = dataset_name(dataset)
    folder = preprocessed_folder(full_name)
    file = folder and folder / f"{plans}.json"
    if file is None or not file.is_file():
        raise MissingFileError(
            f"{full_name} has no {plans}.json. Run nnUNetv2_plan_and_preprocess -d {full_name} -c 2d."
        )
    with exclusive(file):
        return _add_slices(file, full_name, base, batch, name or f"{base}_slices", overwrite)


def _add_slices(file: Path, dataset: str, base: str, batch: int, new: str, overwrite: bool) -> SlicesConfiguration:
    content = read_object(file)
    if base not in content["configurations"]:
        raise InputError(f"-c {base}: {file} has {', '.join(content['configurations'])}.")
    entry = whole_slices(content, base, batch)
    if content["configurations"].get(new, entry) != entry and not overwrite:
        raise InputError(f"{file} has another configuration {new}. Choose a --name, or pass --overwrite.")
    content["configurations"][new] = entry
    write_json(file.resolve(), content)
    return SlicesConfiguration(file, dataset, new, entry["patch_size"])


def whole_slices(plans: dict, base: str, batch: int) -> dict:
    """Return an entry for `configurations` of the plans, on the data preprocessed for `base`.

    Raises ValueError where `base` is not 2D, FileNotFoundError where it was not preprocessed.
    """
    planned = PlansManager(plans).get_configuration(base)
    if len(planned.patch_size) != 2:
        raise InputError(f"configuration {base}: expected a 2D one, found 3D. Name another with -c.")
    folder = preprocessed_data(plans, base)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} does not exist. Run nnUNetv2_preprocess for configuration {base}.")
    cases = infer_dataset_class(str(folder))(str(folder))
    largest = np.max([np.shape(cases.load_case(case)[0])[-2:] for case in cases.identifiers], axis=0)
    patch = (np.ceil(largest / MULTIPLE) * MULTIPLE).astype(int).tolist()
    return {"inherits_from": base, "patch_size": patch, "batch_size": batch}
