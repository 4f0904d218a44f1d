"""`conemos merge`: several raw datasets, each annotated for other labels, become one with `sources`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from nnunetv2_conemos.annotations.overview import source_table
from nnunetv2_conemos.datasets.folders import raw_folder
from nnunetv2_conemos.datasets.merge.merge import merge
from nnunetv2_conemos.datasets.merge.report import MergeReport
from nnunetv2_conemos.datasets.merge.spec import Recipe, absolute, checked_recipe, read_recipe
from nnunetv2_conemos.datasets.writer import Images
from nnunetv2_conemos.errors import InputError, shorten
from nnunetv2_conemos.parallel import default_processes


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Return the recipe that a command line describes; raises ValueError for options that fit none of the datasets."""
    entries: list[dict[str, Any]] = [{"dataset": name} for name in args.datasets]
    entries += [{"images": str(folder)} for folder in args.unlabelled]
    recipe: dict[str, Any] = {"datasets": entries}
    recipe |= {"keep_apart": args.keep_apart, "images": args.images, "file_ending": args.file_ending}
    recipe["orientation"] = args.orientation
    for option in ("rename", "channels"):
        for text in getattr(args, option):
            entry, pair = addressed(text, recipe, option)
            old, _, new = pair.partition("=")
            if not (old and new) or "=" in new:
                raise InputError(
                    f"--{option} {text}: expected OLD=NEW or DATASET:OLD=NEW, with one '='. Names that hold '=' or ':' "
                    "go into a --recipe."
                )
            entry.setdefault(option, {})[old] = new
    for text in args.drop:
        entry, label = addressed(text, recipe, "drop")
        entry["drop"] = (*entry.get("drop", ()), label)
    for text in args.annotated:
        entry, file = addressed(text, recipe, "annotated")
        if entry is recipe and len(args.datasets) != 1:
            raise InputError(f"--annotated {text}: name the dataset that it describes: DATASET:{text}.")
        (entries[0] if entry is recipe else entry)["annotated"] = file
    return absolute(checked_recipe(recipe, "merge"))


def addressed(text: str, recipe: dict[str, Any], option: str) -> tuple[dict[str, Any], str]:
    """Split `DATASET:REST` into the entry of that dataset and REST; the recipe and `text` where no dataset is named."""
    origins = {entry.get("dataset") or entry["images"]: entry for entry in recipe["datasets"]}
    for origin, entry in origins.items():
        for name in (origin, Path(origin).name):
            if text.startswith(f"{name}:"):
                return entry, text[len(name) + 1 :]
    head, colon, _ = text.partition(":")
    if colon and head.startswith("Dataset"):
        raise InputError(f"--{option} {text}: '{head}' is none of the datasets to merge ({', '.join(origins)}).")
    return recipe, text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="raw datasets: ids, names or paths")
    parser.add_argument("-o", dest="output", required=True, metavar="DATASET", help="new dataset: Dataset100_Name")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="YAML file with all of these options instead")
    every = "; DATASET: may be left out to mean all"
    parser.add_argument(
        "--rename", nargs="+", default=[], metavar="DATASET:OLD=NEW", help="labels that are called differently" + every
    )
    parser.add_argument("--drop", nargs="+", default=[], metavar="DATASET:LABEL", help="labels to leave out" + every)
    parser.add_argument(
        "--keep-apart", nargs="+", default=[], metavar="LABEL", help="one label per dataset where definitions differ"
    )
    parser.add_argument(
        "--channels", nargs="+", default=[], metavar="DATASET:OLD=NEW", help="channels that mean the same" + every
    )
    annotated_help = "JSON or CSV, case -> labels, of a dataset whose cases are annotated for different labels"
    parser.add_argument("--annotated", nargs="+", default=[], metavar="DATASET:FILE", help=annotated_help)
    unlabelled_help = "folders of images CASE_0000.ENDING in which nothing is annotated"
    parser.add_argument("--unlabelled", nargs="+", type=Path, default=[], metavar="FOLDER", help=unlabelled_help)
    parser.add_argument(
        "--images", choices=get_args(Images), default="reference", help="how images are kept [%(default)s]"
    )
    parser.add_argument("--file-ending", metavar=".ENDING", help="of the result [the most frequent one]")
    orientation_help = "of all images and label maps, such as LPS; nothing is resampled [as stored]"
    parser.add_argument("--orientation", metavar="AXES", help=orientation_help)
    parser.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset of that name")


def run(args: argparse.Namespace) -> None:
    if args.recipe and args.datasets:
        raise InputError(f"--recipe {args.recipe} names the datasets already; leave {shorten(args.datasets)} out.")
    if not args.recipe and not args.datasets:
        raise InputError("name the datasets to merge, or give a --recipe.")
    recipe = read_recipe(args.recipe) if args.recipe else recipe_of(args)
    report = merge(recipe, args.output, processes=args.processes, overwrite=args.overwrite)
    print_report(report, Console(soft_wrap=True))
    print(f"Written: {report.folder}")
    if raw_folder(report.folder.name) is not None:
        print(f"Next: conemos check {report.folder.name}")


def print_report(report: MergeReport, console: Console) -> None:
    """Print who annotated what, and everything that a merge changed or left open."""
    console.print(source_table(report.table, report.occurs))
    for title, texts in (("Changed", report.changes), ("Look at", report.conflicts), ("Notes", report.notes)):
        if texts:
            console.print(f"[bold]{title}")
            for text in texts:
                console.print(f"  {text}", markup=False, highlight=False)
    never_annotated = report.table.never_annotated()
    if never_annotated:
        console.print(
            f"Annotated in no case: {shorten(never_annotated)}: never predicted.", markup=False, style="bold yellow"
        )
