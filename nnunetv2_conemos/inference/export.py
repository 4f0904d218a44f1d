"""`conemos export`: a stock nnU-Net model, of one label or of all, for places without this package.

For a fixed question FiLM folds into the affine weights of norms and logits, so the result is nnU-Net's own network with
a background head of zeros: its segmentation is that of `conemos predict --labels LABEL`.
"""

from __future__ import annotations

import copy
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS
from nnunetv2_conemos.files import require_no_inputs_within, write_aside, write_json
from nnunetv2_conemos.inference.model_folder import ModelFolder, read_checkpoint
from nnunetv2_conemos.networks.heads import is_head
from nnunetv2_conemos.training.plans_facts import PLANS_KEY

TRAINER = "nnUNetTrainer"


def stock_plans(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans without what only this package reads."""
    stock = {key: value for key, value in copy.deepcopy(plans).items() if key != PLANS_KEY}
    for configuration in stock["configurations"].values():
        configuration.pop(PLANS_KEY, None)
    return stock


def stock_dataset_json(dataset_json: dict[str, Any], label: str | None) -> dict[str, Any]:
    """dataset.json of one label, or of all of them (None)."""
    dropped = {*OWN_KEYS, "dataset", *(() if label is None else ("regions_class_order",))}
    kept = {key: value for key, value in dataset_json.items() if key not in dropped}
    return kept if label is None else kept | {"labels": {"background": 0, label: 1}}


def with_background(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits of labels get that of background before them, always 0: nnU-Net's argmax needs it, regions have none."""
    return {
        key: torch.cat((torch.zeros_like(value[:1]), value)) if is_head(key) else value
        for key, value in weights.items()
    }


def stock_weights(model: ModelFolder, checkpoint: dict[str, Any], label: str | None) -> dict[str, Tensor]:
    """Weights of a stock network; raises NotImplementedError where the trained one does not fold into one."""
    network: Any = model.network(checkpoint)
    if not hasattr(network, "stock_weights"):
        raise NotImplementedError(f"models of {checkpoint['trainer_name']} do not fold into a stock network.")
    names = model.labels.names
    weights = network.stock_weights([names.index(name) + 1 for name in (names if label is None else (label,))])
    return weights if label is None and model.labels.has_regions else with_background(weights)


def stock_checkpoint(model: ModelFolder, file: Path, label: str | None) -> dict[str, Any]:
    """A checkpoint that stock nnU-Net predicts with."""
    checkpoint = read_checkpoint(file)
    arguments = {
        **checkpoint["init_args"],
        "plans": stock_plans(checkpoint["init_args"]["plans"]),
        "dataset_json": stock_dataset_json(checkpoint["init_args"]["dataset_json"], label),
    }
    return {
        "network_weights": stock_weights(model, checkpoint, label),
        "trainer_name": TRAINER,
        "init_args": arguments,
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
    }


def export(model: ModelFolder, folds: list[str], checkpoint: str, label: str | None, folder: Path) -> str:
    """Write the stock model into an empty folder; returns the name of its configuration."""
    write_json(folder / "plans.json", stock_plans(model.plans))
    write_json(folder / "dataset.json", stock_dataset_json(model.dataset_json, label))
    content: dict[str, Any] = {}
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        content = stock_checkpoint(model, model.folder / f"fold_{fold}" / checkpoint, label)
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return content["init_args"]["configuration"]


def write_zip(folder: Path, file: Path, inside: str) -> None:
    """An archive as nnUNetv2_install_pretrained_model_from_zip unpacks it into nnUNet_results."""

    def write(aside: Path) -> None:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(member, f"{inside}/{member.relative_to(folder)}")

    write_aside(file, write)


def installed_name(model: ModelFolder, configuration: str, label: str | None) -> str:
    """Where an installed archive lies in nnUNet_results: by its plans' name beside stock models of that dataset."""
    return f"{model.plans['dataset_name']}/{TRAINER}__{installed_plans(model, label)}__{configuration}"


def installed_plans(model: ModelFolder, label: str | None) -> str:
    """nnU-Net parts names at double underscores."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", label or "exported").strip("_")
    if not readable:
        readable = f"label_{model.labels.names.index(str(label)) + 1}"
    return f"{model.plans['plans_name']}_{readable}"


def require_model_folder(folder: Path, model: ModelFolder) -> None:
    """Raises ValueError where what is to be replaced is no exported model, or holds the model that is exported."""
    require_no_inputs_within(folder, [model.folder / "plans.json"])
    if folder.exists() and not ((folder / "plans.json").is_file() and list(folder.glob("fold_*"))):
        raise ValueError(f"{folder} exists and is no model folder, so it is not replaced. Choose another name.")
