"""`conemos declare DATASET --annotated FILE`: turn a table case -> annotated labels into the `sources` of dataset.json.

Cases that are annotated alike become one source. The raw dataset.json and an existing preprocessed copy are both
written or both left as they were: nnU-Net copies the file only when it plans, and trains on the copy.
"""

from __future__ import annotations

import argparse
import csv
import glob
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_raw
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunetv2_conemos import datasets
from nnunetv2_conemos.sources import LabelSpace, SourceError, SourceTable, shorten

Annotated = dict[str, list[str]]  # case -> labels annotated in it
LONGEST_NAME = 40  # of a source, in characters
NO_MAP = "nnU-Net needs one for each case: for an unlabelled case, a map of zeros (never the ignore label)."


def read_annotated(path: Path) -> Annotated:
    """Read case -> labels from JSON (`{"case": ["label", ...]}`) or CSV (header `case,labels`).

    A CSV row holds labels separated by ';' (none = unlabelled); rows of one case are joined. Raises ValueError where
    the file says anything else, and FileNotFoundError where it is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--annotated: there is no file {path}.")
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ValueError(f"--annotated {path}: expected a .json or .csv file, found '{path.suffix}'.")
    annotated = readers[path.suffix.lower()](path)
    if not annotated:
        raise ValueError(f"--annotated {path}: the file names no case.")
    return annotated


def _read_json(path: Path) -> Annotated:
    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        if repeated:
            raise ValueError(f"--annotated {path}: named more than once: {shorten(repeated)}. Join their labels.")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=refuse_repeated)
    except json.JSONDecodeError as error:
        raise ValueError(f"--annotated {path}: not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"--annotated {path}: expected an object case -> labels, found {type(content).__name__}.")
    for case, labels in content.items():
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"--annotated {path}, case '{case}': expected a list of label names, found {labels!r}.")
    return content


def _read_csv(path: Path) -> Annotated:
    annotated: Annotated = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, restkey="too many", skipinitialspace=True)
        if rows.fieldnames != ["case", "labels"]:
            raise ValueError(f"--annotated {path}: expected the header 'case,labels', found {rows.fieldnames}.")
        for row in rows:
            if not row["case"] or row["labels"] is None or "too many" in row:
                raise ValueError(
                    f"--annotated {path}, line {rows.line_num}: expected two fields, a case and labels separated by "
                    f"';', found {[field for field in row.values() if field]}."
                )
            labels = [label.strip() for label in row["labels"].split(";")]
            annotated.setdefault(row["case"].strip(), []).extend(label for label in labels if label)
    return annotated


def complete_table(annotated: Mapping[str, list[str]], cases: Iterable[str], rest: list[str] | None) -> Annotated:
    """Match the table with the cases of the dataset; cases it does not name get the labels `rest`.

    Raises SourceError for cases that are not in the dataset, and for missing ones where `rest` is None.
    """
    cases = sorted(cases)
    strangers = sorted(set(annotated) - set(cases))
    missing = sorted(set(cases) - set(annotated))
    problems = []
    if strangers:
        problems.append(
            f"{len(strangers)} case(s) of the table are not in the dataset: {shorten(strangers)}. "
            f"Cases are named without channel and file ending, e.g. {shorten(cases[:2])}."
        )
    if missing and rest is None:
        problems.append(
            f"{len(missing)} case(s) of the dataset are not in the table: {shorten(missing)}. Add them, or say "
            "`--missing unlabelled` (nothing is annotated in them) or `--missing all` (everything is)."
        )
    if problems:
        raise SourceError(" ".join(problems))
    return {case: annotated.get(case, rest or []) for case in cases}


def group_sources(
    annotated: Mapping[str, list[str]], labels: LabelSpace, dataset: str | None = None
) -> dict[str, dict[str, Any]]:
    """`sources` for dataset.json: one per set of labels, in the order of nnU-Net's heads, exact cases as globs.

    `dataset`: what they are all parts of.
    Raises SourceError for a label name that does not exist, with the nearest one.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for case, names in sorted(annotated.items()):
        columns = {labels.index(name, f"case '{case}'") for name in names}
        groups.setdefault(tuple(labels.names[column] for column in sorted(columns)), []).append(case)
    sources = {}
    for number, (known, cases) in enumerate(sorted(groups.items(), key=lambda group: -len(group[1])), start=1):
        name = _readable_name(known, labels.names)
        if len(name) > LONGEST_NAME or name in sources:
            name = f"group {number}"
        sources[name] = {"cases": [glob.escape(case) for case in cases], "annotated": list(known)}
        if dataset:
            sources[name]["dataset"] = dataset
    return sources


def _readable_name(known: tuple[str, ...], every: tuple[str, ...]) -> str:
    lacking = [name for name in every if name not in known]
    if not known:
        return "unlabelled"
    if not lacking:
        return "all labels"
    return "all but " + ", ".join(lacking) if len(lacking) < len(known) else " + ".join(known)


def declare(
    dataset: str, annotated: Annotated, missing: str | None = None, overwrite: bool = False
) -> tuple[SourceTable, list[Path]]:
    """Write `sources` into the raw dataset.json and an existing preprocessed copy; returns the table and these files.

    `missing` says what cases outside `annotated` are: "unlabelled", "all", or None = they are an error. Raises
    SourceError (nothing is written) for anything that does not fit, and for existing `sources` without `overwrite`.
    """
    name, raw = find_raw(dataset)
    dataset_json = datasets.read_dataset_json(raw)
    labels = LabelSpace.from_dataset_json(dataset_json)
    cases = datasets.raw_cases(raw)
    rest = {"unlabelled": [], "all": list(labels.names), None: None}[missing]
    sources = group_sources(complete_table(annotated, cases, rest), labels, name)
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
    parser.add_argument("--annotated", type=Path, required=True, metavar="FILE", help=table_help)
    missing_help = "what cases that FILE does not name are annotated for [an error]"
    parser.add_argument("--missing", choices=("unlabelled", "all"), help=missing_help)
    parser.add_argument("--overwrite", action="store_true", help="replace `sources` that are already there")


def run(args: argparse.Namespace) -> None:
    console = Console(soft_wrap=True)
    table, files = declare(args.dataset, read_annotated(args.annotated), args.missing, args.overwrite)
    console.print(source_table(table))
    for file in files:
        console.print(f"`sources` written to {file}", markup=False, highlight=False)
    without_map = cases_without_map(files[0].parent)
    if without_map:
        console.print(f"{len(without_map)} case(s) have no label map: {shorten(without_map)}. {NO_MAP}", markup=False)
