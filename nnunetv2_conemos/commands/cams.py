"""`conemos cams`: label maps of tagged cases from a model that learnt from tags."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_conemos.commands.arguments import add_inference_arguments, inference_of
from nnunetv2_conemos.datasets.folders import named_or_path, new_dataset_folder, require_new_dataset
from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.inference.model_folder import read_model
from nnunetv2_conemos.methods.cmer.pseudo_labels import annotate, plan_annotation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model that learnt from image tags")
    parser.add_argument("-d", dest="dataset", required=True, help="raw dataset with tagged cases: id, name or path")
    parser.add_argument("-o", dest="output", required=True, metavar="DATASET", help="new dataset: Dataset101_Name")
    margin_help = "from how far above its threshold an activation, of 0 to 1, is the label [%(default)s]"
    parser.add_argument("--margin", type=float, default=0.1, metavar="A", help=margin_help)
    background_help = "below which activation a voxel is background; in between, the ignore label [%(default)s]"
    parser.add_argument("--background", type=float, default=0.2, metavar="A", help=background_help)
    add_inference_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.margin < 0.5:
        raise ValueError(f"--margin {args.margin:g}: expected a number from 0 to below 0.5.")
    if not 0 <= args.background <= 1:
        raise ValueError(f"--background {args.background:g}: expected a number from 0 to 1.")
    register_trainers()
    model, target = read_model(args.model), new_dataset_folder(args.output)
    require_new_dataset(target, args.overwrite)
    raw = named_or_path(args.dataset)
    annotation = plan_annotation(model, inference_of(args, model), raw, args.margin, args.background)
    slices = annotate(annotation, target, args.overwrite)
    for name, (tagged, found) in zip(annotation.table.labels.names, slices.tolist(), strict=True):
        if tagged:
            doubt = ": look at the maps before you train on them" if found < tagged / 2 else ""
            print(f"'{name}' was annotated in {found} of {tagged} slices that are tagged with it{doubt}.")
    print(f"Written: {target}, with {len(annotation.tagged)} cases annotated by the model")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {target.name}")
