"""`conemos cams`: label maps of tagged cases from a model that learnt from tags."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_conemos.commands.arguments import add_inference_arguments, inference_of
from nnunetv2_conemos.methods.cmer.annotate import annotate_from_tags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model that learnt from image tags")
    parser.add_argument("-d", dest="dataset", required=True, help="raw dataset with tagged cases: id, name or path")
    parser.add_argument("-o", dest="output", required=True, metavar="DATASET", help="new dataset: Dataset101_Name")
    margin_help = "an activation (0 to 1) at least this far above its threshold is the label [%(default)s]"
    parser.add_argument("--margin", type=float, default=0.1, metavar="A", help=margin_help)
    background_help = "below this activation, a voxel is background; in between, the ignore label [%(default)s]"
    parser.add_argument("--background", type=float, default=0.2, metavar="A", help=background_help)
    add_inference_arguments(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")


def run(args: argparse.Namespace) -> None:
    made = annotate_from_tags(
        args.model,
        args.dataset,
        args.output,
        margin=args.margin,
        background=args.background,
        inference=inference_of(args),
        overwrite=args.overwrite,
    )
    if not made.has_folds:
        print("no splits_final.json: fewer than two cases have label maps to validate on. Write it by hand.")
    for name, (tagged, found) in made.slices.items():
        doubt = ": look at the maps before you train on them" if found < tagged / 2 else ""
        print(f"'{name}' was annotated in {found} of {tagged} slices that are tagged with it{doubt}.")
    print(f"Written: {made.folder}, with {made.cases} cases annotated by the model")
    print(f"Next: nnUNetv2_plan_and_preprocess -d {made.folder.name}")
