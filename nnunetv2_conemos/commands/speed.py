"""`conemos benchmark speed`: time and memory of networks against the number of labels, beside stock nnU-Net."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos.benchmark.speed.run import measure_speed
from nnunetv2_conemos.benchmark.speed.settings import ARMS, LABELS_COUNTS, SpeedSettings, What

SHOWN = {
    "step_s": ("step", "{:.3g} s"),
    "step_mib": ("its memory", "{:,.0f} MiB"),
    "tile_s": ("tile", "{:.3g} s"),
    "case_s": ("case", "{:.3g} s"),
    "case_mib": ("its memory", "{:,.0f} MiB"),
    "nnunet_case_s": ("case, nnU-Net's way", "{:.3g} s"),
    "nnunet_case_mib": ("its memory", "{:,.0f} MiB"),
    "parameters": ("parameters", "{:,.0f}"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = SpeedSettings()
    parser.add_argument("-o", dest="folder", type=Path, required=True, metavar="FOLDER", help="folder for all outputs")
    parser.add_argument("--arms", nargs="+", default=ARMS, metavar="TRAINER", help=f"[{' '.join(ARMS)}]")
    counts = " ".join(map(str, LABELS_COUNTS))
    parser.add_argument("--labels-counts", nargs="+", type=int, default=LABELS_COUNTS, metavar="K", help=f"[{counts}]")
    parser.add_argument("--what", nargs="+", choices=get_args(What), default=get_args(What), help="[all]")
    parser.add_argument("-device", default=default.device, choices=("cuda", "cpu"), help="[%(default)s]")
    parser.add_argument("-d", dest="dataset", help="preprocessed dataset: its plans, and its loaders are measured")
    parser.add_argument("-c", dest="configuration", default=default.configuration, help="[%(default)s]")
    parser.add_argument("-p", dest="plans", default=default.plans, help="plans of -d [%(default)s]")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="repeats, all in turn [%(default)s]")
    cap_help = "seconds after which a measurement is given up [%(default)g]"
    parser.add_argument("--cap", type=float, default=default.cap, metavar="S", help=cap_help)
    parser.add_argument("--case-shape", nargs=3, type=int, metavar=("Z", "Y", "X"), help="voxels of the whole case")
    step_help = "of the sliding window over it, in patches [%(default)s]"
    parser.add_argument("--step-size", type=float, default=default.step_size, metavar="S", help=step_help)
    features_help = "of the first stage, without -d and without a GPU [%(default)s]"
    parser.add_argument("--features", type=int, default=default.features, metavar="N", help=features_help)
    patch_help = f"there, too [{' '.join(map(str, default.patch))}]"
    parser.add_argument("--patch", nargs=3, type=int, default=default.patch, metavar=("Z", "Y", "X"), help=patch_help)
    parser.add_argument("--no-compile", action="store_true", help="on a GPU: train without torch.compile")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    parser.add_argument("--profile", action="store_true", help="write where the time goes, for each arm and K")


def run(args: argparse.Namespace) -> None:
    console, progress = Console(), Console(stderr=True)
    settings = SpeedSettings(
        arms=args.arms,
        labels_counts=args.labels_counts,
        what=args.what,
        device=args.device,
        dataset=args.dataset,
        configuration=args.configuration,
        plans=args.plans,
        rounds=args.rounds,
        cap=args.cap,
        compiled=not args.no_compile,
        case_shape=args.case_shape,
        profile=args.profile,
        step_size=args.step_size,
        features=args.features,
        patch=args.patch,
    )
    result = measure_speed(
        args.folder,
        settings,
        report=lambda text: progress.print(escape(text), style="dim"),
        overwrite=args.overwrite,
    )
    console.print(table_of(result.table))
    for row in result.loaders.to_dict("records"):
        rate = f"{row['batches_per_s']:.3g} batches/s ({row['loader_ratio']:.2f})"
        console.print(f"loader of {row['arm']}: {row['note'] or rate}", highlight=False)
    console.print("Written: " + ", ".join(map(str, result.files)), soft_wrap=True)


def table_of(table: pd.DataFrame) -> Table:
    """Return the table to print: each value with its multiple of stock nnU-Net's."""
    shown = {name: how for name, how in SHOWN.items() if table[name].notna().to_numpy().any()}
    view = Table("K", "arm", *(title for title, _ in shown.values()), "note", title="multiples of stock nnU-Net's")
    for row in table.to_dict("records"):
        cells = [cell(row[name], row[f"{name}_ratio"], how) for name, (_, how) in shown.items()]
        view.add_row(str(row["labels"]), escape(row["arm"]), *cells, escape(row["note"]))
    return view


def cell(value: float | None, ratio: float, how: str) -> str:
    if value is None or pd.isna(value):
        return "-"
    return how.format(value) + ("" if pd.isna(ratio) else f" ({ratio:.2f})")
