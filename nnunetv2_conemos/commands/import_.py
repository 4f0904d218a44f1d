"""`conemos import`: a raw dataset with `sources` from files as clinics keep them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from nnunetv2_conemos.annotations.overview import source_table
from nnunetv2_conemos.conversion.case_maps import Empty
from nnunetv2_conemos.conversion.importing import import_dataset, import_images, list_names
from nnunetv2_conemos.conversion.layouts.choose import LayoutName
from nnunetv2_conemos.conversion.names import Table
from nnunetv2_conemos.conversion.report import FOLDER, ImportReport, name_view
from nnunetv2_conemos.datasets.folders import raw_folder
from nnunetv2_conemos.datasets.writer import Images
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.parallel import default_processes

SHOWN = 20  # notes that are printed; the report holds all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="FOLDER", help="folder that holds the files")
    parser.add_argument(
        "-o", dest="output", metavar="DATASET", help="new dataset: Dataset100_Name; with --list, a file"
    )
    parser.add_argument("--list", action="store_true", help="only list the names; write labels.yaml (or -o) to edit")
    parser.add_argument("--images-only", action="store_true", help="only images to predict, into the folder -o")
    files = parser.add_argument_group("files")
    files.add_argument("--layout", choices=get_args(LayoutName), default="auto", help="[%(default)s]")
    image_help = "images, one pattern per channel: '{case}/ct.nii.gz'"
    files.add_argument("--image", nargs="+", default=[], metavar="PATTERN", help=image_help)
    mask_help = "masks: '{case}/segmentations/{label}.nii.gz'; or segmentations: '{case}/*.seg.nrrd'"
    files.add_argument("--mask", default="", metavar="PATTERN", help=mask_help)
    files.add_argument("--table", default="", metavar="PATTERN", help="tables value -> name [beside each label map]")
    names = parser.add_argument_group("labels")
    names.add_argument(
        "--labels", metavar="FILE", help="YAML: label -> names and patterns; or tg263, or names [depends on the layout]"
    )
    names.add_argument("--ignore-unknown", action="store_true", help="leave out names that --labels does not know")
    absent_help = "JSON or CSV, case -> labels that somebody looked for and that are absent"
    names.add_argument("--absent", type=Path, metavar="FILE", help=absent_help)
    empty_help = "what a mask without voxels means: looked for and absent, or not annotated [%(default)s]"
    names.add_argument("--empty", choices=get_args(Empty), default="absent", help=empty_help)
    voxels = parser.add_argument_group("voxels")
    order_help = "for voxels of several labels: each is written over those before it, and over all that are not named"
    voxels.add_argument("--order", nargs="+", default=[], metavar="LABEL", help=order_help)
    voxels.add_argument("--regions", action="store_true", help="labels that always lie within others become regions")
    share_help = "share of the smaller label up to which shared voxels go to it [%(default)s]"
    voxels.add_argument("--max-overlap", type=float, default=0.0, metavar="SHARE", help=share_help)
    resample_help = "bring masks on other grids to that of the image, by nearest neighbour"
    voxels.add_argument("--resample", action="store_true", help=resample_help)
    result = parser.add_argument_group("result")
    result.add_argument("--images", choices=get_args(Images), default="link", help="how images are kept [%(default)s]")
    result.add_argument("--channels", nargs="+", metavar="NAME", help="names of the channels, such as CT")
    private_help = "replace the names of cases and patients by numbers; FILE says who is who"
    result.add_argument("--anonymise", type=Path, metavar="FILE", help=private_help)
    result.add_argument("-np", dest="processes", type=int, default=default_processes(), help="[%(default)s]")
    result.add_argument("--overwrite", action="store_true", help="replace an existing result of that name")


def run(args: argparse.Namespace) -> None:
    console = Console(soft_wrap=True)
    labels = args.labels if args.labels in (None, *get_args(Table)) else Path(args.labels)
    where: dict[str, Any] = {"layout": args.layout, "image": args.image, "overwrite": args.overwrite}
    drawn: dict[str, Any] = {"mask": args.mask, "table": args.table, "labels": labels}
    kept: dict[str, Any] = {"images": args.images, "anonymise": args.anonymise, "processes": args.processes}
    if args.list:
        listing = list_names(args.source, args.output or "labels.yaml", **where, **drawn)
        console.print(f"Layout {listing.layout}", markup=False, highlight=False)
        console.print(name_view(listing.names))
        print(f"Written: {listing.file}: edit it, then pass it as --labels")
        return
    if not args.output:
        raise InputError("-o: name the new dataset, such as Dataset100_Name.")
    if args.images_only:
        imported = import_images(args.source, args.output, **where, **kept)
        print(f"Written: {imported.folder}, {imported.cases} case(s)")
        return
    report = import_dataset(
        args.source,
        args.output,
        **where,
        **drawn,
        **kept,
        ignore_unknown=args.ignore_unknown,
        absent=args.absent,
        empty=args.empty,
        order=args.order,
        regions=args.regions,
        max_overlap=args.max_overlap,
        resample=args.resample,
        channels=args.channels,
    )
    print_report(report, console)
    print(f"Written: {report.folder}, with a report in {report.folder / FOLDER}")
    if raw_folder(report.folder.name) is not None:
        print(f"Next: conemos check {report.folder.name}")


def print_report(report: ImportReport, console: Console) -> None:
    """Print names, who annotated what, what became of shared voxels, and notes."""
    if report.names:
        console.print(name_view(report.names))
    console.print(source_table(report.table, report.occurs))
    for title, texts in (("Voxels of two labels", report.overlaps), ("Notes", report.notes)):
        if texts:
            console.print(f"[bold]{title}")
            more = [f"and {len(texts) - SHOWN} more, in the report"] if len(texts) > SHOWN else []
            for text in (*texts[:SHOWN], *more):
                console.print(f"  {text}", markup=False, highlight=False)
