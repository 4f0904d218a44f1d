"""`conemos export`: one label of a conditional model as a stock nnU-Net model, for places without this package.

For a fixed label FiLM folds into the affine weights of norms and logits, so the result is nnU-Net's own network with a
background head of zeros: its segmentation is that of `conemos predict --labels LABEL`.
"""

from __future__ import annotations

import argparse
import copy
import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_conemos import datasets, env
from nnunetv2_conemos.method import PLANS_KEY
from nnunetv2_conemos.models import ModelFolder, read_checkpoint, read_model
from nnunetv2_conemos.networks.conditional import ConditionalUNet, folded_weights
from nnunetv2_conemos.sources import SourceError

TRAINER = "nnUNetTrainer"


def stock_plans(plans: dict[str, Any]) -> dict[str, Any]:
    """The plans without what only this package reads."""
    stock = {key: value for key, value in copy.deepcopy(plans).items() if key != PLANS_KEY}
    for configuration in stock["configurations"].values():
        configuration.pop(PLANS_KEY, None)
    return stock


def stock_dataset_json(dataset_json: dict[str, Any], label: str) -> dict[str, Any]:
    """dataset.json of the one label."""
    dropped = ("sources", "regions_class_order", "dataset")
    kept = {key: value for key, value in dataset_json.items() if key not in dropped}
    return kept | {"labels": {"background": 0, label: 1}}


def with_background(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """One-output logits [1,F,*S] become [2,F,*S]: background, always 0, and the label."""
    return {
        key: torch.cat((torch.zeros_like(value), value)) if ".seg_layers." in key else value
        for key, value in weights.items()
    }


def stock_checkpoint(model: ModelFolder, file: Path, label: str) -> dict[str, Any]:
    """A checkpoint that stock nnU-Net predicts with; raises NotImplementedError where the network does not fold."""
    checkpoint = read_checkpoint(file)
    network = model.network(checkpoint)
    if not isinstance(network, ConditionalUNet):
        raise NotImplementedError(f"{checkpoint['trainer_name']} does not fold into a stock network.")
    weights = with_background(folded_weights(network, model.labels.index(label, "--label") + 1))
    arguments = {
        **checkpoint["init_args"],
        "plans": stock_plans(checkpoint["init_args"]["plans"]),
        "dataset_json": stock_dataset_json(checkpoint["init_args"]["dataset_json"], label),
    }
    return {
        "network_weights": weights,
        "trainer_name": TRAINER,
        "init_args": arguments,
        "inference_allowed_mirroring_axes": checkpoint["inference_allowed_mirroring_axes"],
    }


def export(model: ModelFolder, folds: list[str], checkpoint: str, label: str, folder: Path) -> None:
    """Write the stock model into an empty folder."""
    datasets.write_json(folder / "plans.json", stock_plans(model.plans))
    datasets.write_json(folder / "dataset.json", stock_dataset_json(model.dataset_json, label))
    for fold in folds:
        (folder / f"fold_{fold}").mkdir()
        content = stock_checkpoint(model, model.folder / f"fold_{fold}" / checkpoint, label)
        torch.save(content, folder / f"fold_{fold}" / "checkpoint_final.pth")


def write_zip(folder: Path, file: Path, inside: str) -> None:
    """An archive as nnUNetv2_install_pretrained_model_from_zip unpacks it into nnUNet_results."""

    def write(aside: Path) -> None:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for member in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(member, f"{inside}/{member.relative_to(folder)}")

    datasets.write_aside(file, write)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", dest="model", type=Path, required=True, metavar="FOLDER", help="trained model folder")
    parser.add_argument("--label", required=True, help="the label to export")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FOLDER", help="model folder to write")
    parser.add_argument("--zip", type=Path, metavar="FILE", help="also write a file to install the model from")
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="[all that were trained]")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")


def run(args: argparse.Namespace) -> None:
    os.environ[env.VARIABLE] = env.trainer_path(os.environ.get(env.VARIABLE), env.doorway_folder())
    model = read_model(args.model)
    model.labels.index(args.label, "--label")
    if args.label in model.untaught:
        raise SourceError(f"--label: '{args.label}' was annotated in no training case; there is nothing to export.")
    folds = model.folds(args.chk, args.folds)
    if args.zip and args.zip.exists() and not args.overwrite:
        raise FileExistsError(f"{args.zip} exists. Choose another file, or say --overwrite to replace it.")
    with datasets.new_folder(args.output, args.overwrite) as folder:
        export(model, folds, args.chk, args.label, folder)
    print(f"Written: {args.output}\nUse: nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTED -m {args.output}")
    if args.zip:
        configuration = read_checkpoint(args.model / f"fold_{folds[0]}" / args.chk)["init_args"]["configuration"]
        name = f"{TRAINER}__{model.plans['plans_name']}__{configuration}"
        write_zip(args.output, args.zip, f"{model.plans['dataset_name']}/{name}")
        print(f"Written: {args.zip}\nUse: nnUNetv2_install_pretrained_model_from_zip {args.zip}")
