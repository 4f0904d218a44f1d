"""`conemos export`: a stock nnU-Net model, of one label or of all."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nnunetv2_conemos.inference.export import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", dest="model", type=Path, required=True, metavar="FOLDER", help="trained model folder")
    parser.add_argument("--label", help="the label to export [all, where the method predicts all in one pass]")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="FOLDER", help="model folder to write")
    parser.add_argument("--zip", type=Path, metavar="FILE", help="also write a file to install the model from")
    parser.add_argument("-f", dest="folds", nargs="+", metavar="FOLD", help="[all that were trained]")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace what exists")


def run(args: argparse.Namespace) -> None:
    exported = export(
        args.model,
        args.output,
        label=args.label,
        archive=args.zip,
        folds=args.folds,
        checkpoint=args.chk,
        overwrite=args.overwrite,
    )
    folder, archive = exported.folder, exported.archive
    use = shlex.join(["nnUNetv2_predict_from_modelfolder", "-i", "IMAGES", "-o", "PREDICTED", "-m", str(folder)])
    print(f"Written: {folder}\nUse: {use}")
    if archive:
        print(f"Written: {archive}\nUse: nnUNetv2_install_pretrained_model_from_zip {shlex.quote(str(archive))}")
        use = shlex.join(["nnUNetv2_predict", "-d", exported.dataset, "-p", exported.plans])
        print(f"It becomes {exported.installed}: {use} ...")
