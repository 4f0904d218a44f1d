"""`conemos demo`: the whole chain on a generated phantom."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from nnunetv2_conemos.demo.chain import DATASET, demo, make_room, predictions
from nnunetv2_conemos.demo.report import dice_table, picture
from nnunetv2_conemos.subprocesses import CommandError
from nnunetv2_conemos.training.variants import EPOCHS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", dest="folder", type=Path, default=Path("conemos_demo"), metavar="FOLDER", help="[%(default)s]"
    )
    epochs_help = "of 250 steps for both networks [%(default)s: at most 10 minutes on two cores]"
    parser.add_argument("--epochs", type=int, choices=list(EPOCHS), default=5, help=epochs_help)
    parser.add_argument("--seed", type=int, default=0, help="of the phantom [%(default)s]")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in FOLDER")


def run(args: argparse.Namespace) -> int:
    console = Console()
    folder = args.folder.resolve()
    make_room(folder, args.overwrite)
    try:
        dice = demo(folder, args.epochs, args.seed, args.device, console)
    except CommandError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    picture(folder / "nnUNet_raw" / DATASET, predictions(folder), dice).savefig(folder / "demo.png", dpi=110)
    console.print(dice_table(dice))
    console.print(
        f"Stock nnU-Net takes an organ that a site did not annotate for background and loses it, or most of it.\n"
        f"Picture: {folder / 'demo.png'}\nEverything else: {folder}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return 0
