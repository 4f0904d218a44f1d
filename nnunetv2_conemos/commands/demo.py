"""`conemos demo`: run the whole chain on a generated phantom."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from nnunetv2_conemos.demo.chain import run_demo
from nnunetv2_conemos.demo.report import dice_table
from nnunetv2_conemos.subprocesses import CommandError
from nnunetv2_conemos.training.variants import EPOCHS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", dest="folder", type=Path, default=Path("conemos_demo"), metavar="FOLDER", help="[%(default)s]"
    )
    epochs_help = "of 250 steps for both networks [%(default)s: about 13 minutes on two cores]"
    parser.add_argument("--epochs", type=int, choices=list(EPOCHS), default=5, help=epochs_help)
    parser.add_argument("--seed", type=int, default=0, help="of the phantom [%(default)s]")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in FOLDER")


def run(args: argparse.Namespace) -> int:
    console = Console(soft_wrap=True)
    try:
        result = run_demo(args.folder, epochs=args.epochs, seed=args.seed, device=args.device, overwrite=args.overwrite)
    except CommandError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    console.print(dice_table(result.dice))
    console.print(
        f"Stock nnU-Net learns an organ that a site did not annotate as background, and misses all or most of it.\n"
        f"Picture: {result.picture}\nEverything else: {result.folder}",
        markup=False,
        highlight=False,
    )
    return 0
