"""`conemos declare DATASET --annotated FILE`: turn a table case -> annotated labels into the `sources` of dataset.json.

Cases that are annotated alike become one source. The raw dataset.json and an existing preprocessed copy are both
written or both left as they were: nnU-Net copies the file only when it plans, and trains on the copy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_raw
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos import datasets
from nnunetv2_conemos.case_table import NO_TRAITS, TRAITS, Annotated, complete_table, group_sources, read_table
from nnunetv2_conemos.sources import LabelSpace, SourceError, SourceTable, shorten

NO_MAP = "nnU-Net needs one for each case: for an unlabelled case, a map of zeros (never the ignore label)."


def declare(
    dataset: str,
    annotated: Annotated,
    missing: str | None = None,
    overwrite: bool = False,
    traits: Mapping[str, dict[str, str]] = NO_TRAITS,
) -> tuple[SourceTable, list[Path]]:
    """Write `sources` into the raw dataset.json and an existing preprocessed copy; returns the table and these files.

    `missing` says what cases outside `annotated` are: "unlabelled", "all", or None = they are an error. Raises
    SourceError (nothing is written) for anything that does not fit, and for existing `sources` without `overwrite`.
    """
    name, raw = find_raw(dataset)
    dataset_json = datasets.read_raw_json(raw)
    labels = LabelSpace.from_dataset_json(dataset_json)
    cases = datasets.raw_cases(raw)
    rest = {"unlabelled": [], "all": list(labels.names), None: None}[missing]
    sources = group_sources(complete_table(annotated, cases, rest), labels, name, traits)
    table = SourceTable.from_dataset_json(dataset_json | {"sources": sources}, cases)
    files = {}
    for folder in filter(None, (raw, datasets.preprocessed_folder(name))):
        content = datasets.read_dataset_json(folder)
        _refuse_other_labels(folder, content, raw, dataset_json)
        if content.get("sources", sources) != sources and not overwrite:
            raise SourceError(
                f"{folder / 'dataset.json'} already has other `sources`. Say --overwrite to replace them."
            )
        files[folder / "dataset.json"] = content | {"sources": sources}
    write_together(files)
    return table, list(files)


def _refuse_other_labels(folder: Path, theirs: Mapping[str, Any], raw: Path, ours: Mapping[str, Any]) -> None:
    for key in set(datasets.SHARED_KEYS) - {"sources"}:
        if theirs.get(key) != ours.get(key):
            raise SourceError(
                f"`{key}` differs between {raw / 'dataset.json'} ({json.dumps(ours.get(key))}) and "
                f"{folder / 'dataset.json'} ({json.dumps(theirs.get(key))}). Plan and preprocess the dataset again."
            )


def find_raw(dataset: str) -> tuple[str, Path]:
    """Full name and raw folder of a dataset given by name or id; raises FileNotFoundError with what to set."""
    name = datasets.dataset_name(dataset)
    raw = datasets.raw_folder(name)
    if raw is None:
        raise FileNotFoundError(
            f"there is no {name}/dataset.json in nnUNet_raw ({nnUNet_raw.get() or 'not set'}). "
            "Set the variable to the folder that holds the dataset."
        )
    return name, raw


def named_or_path(dataset: str) -> Path:
    """Raw folder of a dataset given by path, name or id."""
    folder = Path(dataset)
    return folder.resolve() if (folder / "dataset.json").is_file() else find_raw(dataset)[1]


def write_together(files: Mapping[Path, Any]) -> None:
    """Replace several existing JSON files, or none: a failure puts back what was already replaced."""
    before = {path: json.loads(path.read_text()) for path in files}
    replaced: list[Path] = []
    try:
        for path, content in files.items():
            datasets.write_json(path, content)
            replaced.append(path)
    except OSError:
        for path in replaced:
            datasets.write_json(path, before[path])
        raise


def cases_without_map(raw: Path) -> list[str]:
    """Cases of a raw dataset whose label file does not exist."""
    return [str(case) for case, files in datasets.raw_cases(raw).items() if not Path(files["label"]).is_file()]


def cell_texts(annotated: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    """'-' = not annotated, 'n' = annotated in n cases and found in all of them, 'm/n' = found in m."""
    cells = zip(annotated.flat, occurs.flat, strict=True)
    texts = ["-" if n == 0 else str(n) if m == n else f"{m}/{n}" for n, m in cells]
    return np.array(texts, dtype=object).reshape(annotated.shape)


def source_table(table: SourceTable, occurs: np.ndarray | None = None) -> Table:
    """How many cases are annotated: label x source, or source x label number where sources abound.

    `occurs` [sources, K] adds in how many of these cases the label was found (see `cell_texts`).
    """
    labels = [escape(name) for name in table.labels.names]
    numbers = [str(number) for number in range(1, len(labels) + 1)]
    sources = [f"{escape(source)} ({len(table.cases_of(source))})" for source in table.sources] + ["all"]
    counts, found = (np.vstack([n, n.sum(0)]) for n in (table.counts(), table.counts() if occurs is None else occurs))
    cells = cell_texts(counts, found)
    view = Table(title="Cases annotated for each label", caption_justify="left")
    view.caption = "source (its cases); -: not annotated; m/n: annotated in n cases, found in m"
    many = len(sources) > len(labels) + 1
    if many:
        view.caption += "\nlabels: " + ", ".join(map(" ".join, zip(numbers, labels, strict=True)))
    if table.domains:
        labels, numbers = (["[italic]domain", *heads] for heads in (labels, numbers))
        domains = [escape(source.domain or "-") for source in table.sources.values()]
        cells = np.column_stack([[*domains, ""], cells])
    rows, columns, cells = (sources, numbers, cells) if many else (labels, sources, cells.T)
    view.add_column()
    for column in columns:
        view.add_column(column, justify="right", no_wrap=many)
    for row, texts in zip(rows, cells, strict=True):
        view.add_row(row, *texts)
    return view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="name or id of a raw dataset")
    table_help = 'JSON {"case": ["label", ...]} or CSV with the header case,labels (labels separated by ";")'
    table_help += f" and, if you like, {', '.join(TRAITS)}"
    parser.add_argument("--annotated", type=Path, required=True, metavar="FILE", help=table_help)
    missing_help = "what cases that FILE does not name are annotated for [an error]"
    parser.add_argument("--missing", choices=("unlabelled", "all"), help=missing_help)
    parser.add_argument("--overwrite", action="store_true", help="replace `sources` that are already there")


def run(args: argparse.Namespace) -> None:
    console = Console(soft_wrap=True)
    given = read_table(args.annotated)
    table, files = declare(args.dataset, given.annotated, args.missing, args.overwrite, given.traits)
    console.print(source_table(table))
    for file in files:
        console.print(f"`sources` written to {file}", markup=False, highlight=False)
    without_map = cases_without_map(files[0].parent)
    if without_map:
        console.print(f"{len(without_map)} case(s) have no label map: {shorten(without_map)}. {NO_MAP}", markup=False)
