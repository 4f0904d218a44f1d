"""`conemos adapt`: convert a checkpoint into initial weights for -pretrained_weights."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.inference.adapt import adapt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="checkpoint of stock nnU-Net or of a trainer of this package")
    parser.add_argument("-d", dest="dataset", required=True, help="dataset (name or id) that will be trained")
    parser.add_argument("-o", dest="output", type=Path, required=True, help="file to write, for -pretrained_weights")
    parser.add_argument("-tr", default="ConditionalFiLMTrainer", help="trainer (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", help="plans (default: %(default)s)")
    parser.add_argument("-c", default="3d_fullres", help="configuration (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output file")


def run(args: argparse.Namespace) -> None:
    adapted = adapt(
        args.checkpoint,
        args.dataset,
        args.output,
        trainer=args.tr,
        plans=args.p,
        configuration=args.c,
        overwrite=args.overwrite,
    )
    words = ["nnUNetv2_train", args.dataset, args.c, "FOLD", "-tr", args.tr, "-p", args.p]
    words += ["-pretrained_weights", str(adapted.file)]
    print(
        f"{adapted.taken} of {adapted.tensors} tensors copied, {adapted.tensors - adapted.taken} initialised; "
        f"labels matched by name: {shorten(adapted.labels) or 'none'}\nWritten: {adapted.file}\n"
        f"Use: {shlex.join(words)}"
    )
