"""`conemos export`: a stock nnU-Net model, of one label or of all."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2_conemos.doorway import register_trainers
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.files import new_folder, require_absent
from nnunetv2_conemos.inference.export import export, installed_name, installed_plans, require_model_folder, write_zip
from nnunetv2_conemos.inference.model_folder import read_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", dest="model", type=Path, required=True, metavar="FOLDER", help="trained model folder")
    parser.add_argument("--label", help="the label to export [all, where the method answers all in one pass]")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FOLDER", help="model folder to write")
    parser.add_argument("--zip", type=Path, metavar="FILE", help="also write a file to install the model from")
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="[all that were trained]")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")


def run(args: argparse.Namespace) -> None:
    register_trainers()
    model = read_model(args.model)
    if args.label is not None:
        model.labels.index(args.label, "--label")
    never_annotated = [name for name in model.never_annotated if args.label in (None, name)]
    if never_annotated:
        raise SourceError(
            f"annotated in no training case: {shorten(never_annotated)}. There is nothing to export of that."
        )
    folds = model.folds(args.chk, args.folds)
    if args.zip:
        require_absent(args.zip, args.overwrite)
    require_absent(args.output, args.overwrite)
    require_model_folder(args.output, model)
    with new_folder(args.output, args.overwrite) as folder:
        configuration = export(model, folds, args.chk, args.label, folder)
    print(f"Written: {args.output}\nUse: nnUNetv2_predict_from_modelfolder -i IMAGES -o PREDICTED -m {args.output}")
    if args.zip:
        inside = installed_name(model, configuration, args.label)
        write_zip(args.output, args.zip, inside)
        print(f"Written: {args.zip}\nUse: nnUNetv2_install_pretrained_model_from_zip {args.zip}")
        dataset, plans = model.plans["dataset_name"], installed_plans(model, args.label)
        print(f"It becomes {inside}: nnUNetv2_predict -d {dataset} -p {plans} ...")
