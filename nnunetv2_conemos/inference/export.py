"""Export stock nnU-Net models, of one label or of all, for use without this package.

For a fixed query FiLM folds into the affine weights of norms and logits, so the result is nnU-Net's own network with a
background head of zeros: its segmentation is that of `conemos predict --labels LABEL`.
"""

from __future__ import annotations

import copy
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.errors import SourceError, UnsupportedError, shorten
from nnunetv2_conemos.files import Writer, new_folder, require_absent, require_no_inputs_within, write_json
from nnunetv2_conemos.inference.model_folder import ModelFolder, read_checkpoint, read_model
from nnunetv2_conemos.networks.heads import is_head
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.ownership import RECORD
from nnunetv2_conemos.training.checkpoints import save

TRAINER = "nnUNetTrainer"


@dataclass(frozen=True)
class Exported:
    """A stock model: its folder and, if an archive was written, where nnU-Net installs it in nnUNet_results."""

    folder: Path
    archive: Path | None
    dataset: str
    plans: str
    configuration: str

    @property
    def installed(self) -> str:
        """The model folder of the installed archive: by its plans' name beside stock models of that dataset."""
        return f"{self.dataset}/{TRAINER}__{self.plans}__{self.configuration}"


def export(
    model: Path | str,
    output: Path | str,
    *,
    label: str | None = None,
    archive: Path | str | None = None,
    folds: Sequence[str] | None = None,
    checkpoint: str = "checkpoint_final.pth",
    overwrite: bool = False,
) -> Exported:
    """Write a trained model as a stock nnU-Net model folder and, with `archive`, as a zip file to install.

    `label`: the one to export (None: all, for methods that predict all in one pass). `folds`: None is all that were
    trained. Raises SourceError for an unknown label or one that was never annotated, NotImplementedError for a model
    that does not fold into a stock network, and FileExistsError or ValueError for an output that must not be replaced.
    """
    register_trainers()
    trained, folder = read_model(Path(model)), Path(output)
    file = None if archive is None else Path(archive)
    if label is not None:
        trained.labels.index(label, "label")
    never_annotated = [name for name in trained.never_annotated if label in (None, name)]
    if never_annotated:
        raise SourceError(f"annotated in no training case: {shorten(never_annotated)}. There is nothing to export.")
    found = trained.folds(checkpoint, folds)
    if file:
        require_absent(file, overwrite)
    require_no_inputs_within(folder, [trained.folder / "plans.json"])
    require_absent(folder, overwrite)
    beside: dict[Path, Writer] = {}
    with new_folder(folder, overwrite, beside) as unfinished:
        configuration = write_stock_model(trained, found, checkpoint, label, unfinished)
        names = trained.plans["dataset_name"], installed_plans(trained, label), configuration
        exported = Exported(folder, file, *names)
        if file:
            beside[file] = lambda aside: write_zip(unfinished, aside, exported.installed)
    return exported


def stock_plans(plans: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the plans without the entries that only this package reads."""
    stock = {key: value for key, value in copy.deepcopy(plans).items() if key != PLANS_KEY}
    for configuration in stock["configurations"].values():
        configuration.pop(PLANS_KEY, None)
    return stock


def stock_dataset_json(dataset_json: dict[str, Any], label: str | None) -> dict[str, Any]:
    """Return the dataset.json of one label, or of all of them (None)."""
    dropped = {*OWN_KEYS, "dataset", *(() if label is None else ("regions_class_order",))}
    kept = {key: value for key, value in dataset_json.items() if key not in dropped}
    return kept if label is None else kept | {"labels": {"background": 0, label: 1}}


def with_background(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a background logit that is always 0 before those of the labels: nnU-Net's argmax needs one."""
    return {
        key: torch.cat((torch.zeros_like(value[:1]), value)) if is_head(key) else value
        for key, value in weights.items()
    }


def stock_weights(model: ModelFolder, checkpoint: dict[str, Any], label: str | None) -> dict[str, Tensor]:
    """Return the weights of a stock network; raises NotImplementedError where the model does not fold into one."""
    network: Any = model.network(checkpoint)
    if not hasattr(network, "stock_weights"):
        raise UnsupportedError(f"models of {checkpoint['trainer_name']} do not fold into a stock network.")
    names = model.labels.names
    weights = network.stock_weights([names.index(name) + 1 for name in (names if label is None else (label,))])
    return weights if label is None and model.labels.has_regions else with_background(weights)


def stock_checkpoint(model: ModelFolder, file: Path, label: str | None) -> dict[str, Any]:
    """Return a checkpoint that stock nnU-Net can predict with."""
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
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
    }


def write_stock_model(
    model: ModelFolder, folds: Sequence[str], checkpoint: str, label: str | None, folder: Path
) -> str:
    """Write the stock model into an empty folder; return the name of its configuration."""
    write_json(folder / "plans.json", stock_plans(model.plans))
    write_json(folder / "dataset.json", stock_dataset_json(model.dataset_json, label))
    content: dict[str, Any] = {}
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        content = stock_checkpoint(model, model.folder / f"fold_{fold}" / checkpoint, label)
        save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return content["init_args"]["configuration"]


def write_zip(folder: Path, file: Path, inside: str) -> None:
    """Write an archive as nnUNetv2_install_pretrained_model_from_zip unpacks it into nnUNet_results."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != RECORD):
            archive.write(member, f"{inside}/{member.relative_to(folder)}")


def installed_plans(model: ModelFolder, label: str | None) -> str:
    """Return a name for the plans without double underscores, at which nnU-Net splits the name of a model folder."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", label or "exported").strip("_")
    if not readable:
        readable = f"label_{model.labels.names.index(str(label)) + 1}"
    return f"{model.plans['plans_name']}_{readable}"
