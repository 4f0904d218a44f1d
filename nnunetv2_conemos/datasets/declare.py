"""Turn a table case -> annotated labels into the `sources` of a raw dataset.

Cases that are annotated alike become one source. nnU-Net copies dataset.json when it plans and trains on the copy, so
the raw file and an existing preprocessed copy are both written, or both left as they were.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import CaseTable, complete_table, group_sources, read_table
from nnunetv2_conemos.datasets.copies import find_copies, prepared_configurations, require_same_cases
from nnunetv2_conemos.datasets.dataset_json import SHARED_KEYS, read_dataset_json, read_raw_json
from nnunetv2_conemos.datasets.folders import cases_without_map, find_raw, preprocessed_folder, raw_cases
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.files import exclusive, json_writer, write_together

Missing = Literal["unlabelled", "all"]  # what cases that a table does not name are annotated for


class Declaration(NamedTuple):
    """Result of `declare`: who annotated what, the files written, and the cases that have no label map yet."""

    table: SourceTable
    files: list[Path]
    without_map: list[str]


def declare(
    dataset: str | int,
    annotated: Path | Mapping[str, list[str]],
    *,
    missing: Missing | None = None,
    overwrite: bool = False,
) -> Declaration:
    """Write `sources` into the dataset.json of a raw dataset and into an existing preprocessed copy of it.

    Args:
        dataset: name or id of a raw dataset.
        annotated: case -> labels annotated in it, or a JSON or CSV file that says so (see `read_table`).
        missing: what cases that `annotated` does not name are annotated for; None: they are an error.
        overwrite: replace other `sources` that are already there.

    Raises SourceError, having written nothing, where table, dataset and the two copies do not fit together, and
    FileNotFoundError for an unknown dataset or file.
    """
    given = read_table(annotated) if isinstance(annotated, Path) else CaseTable(dict(annotated), {})
    name, raw = find_raw(dataset)
    with exclusive(raw):
        return _declare(name, raw, given, missing, overwrite)


def _declare(name: str, raw: Path, given: CaseTable, missing: Missing | None, overwrite: bool) -> Declaration:
    dataset_json = read_raw_json(raw)
    labels = LabelSpace.from_dataset_json(dataset_json)
    cases = raw_cases(raw)
    if copies := find_copies(name):
        require_same_cases(copies, prepared_configurations(copies.preprocessed))
    rest = {"unlabelled": [], "all": list(labels.names), None: None}[missing]
    sources = group_sources(complete_table(given.annotated, cases, rest), labels, name, given.traits)
    table = SourceTable.from_dataset_json(dataset_json | {"sources": sources}, cases)
    files = {}
    for folder in filter(None, (preprocessed_folder(name), raw)):
        content = read_dataset_json(folder)
        _require_same_entries(folder, content, raw, dataset_json)
        if content.get("sources", sources) != sources and not overwrite:
            raise SourceError(
                f"{folder / 'dataset.json'} already has other `sources`. Pass --overwrite to replace them."
            )
        file = (folder / "dataset.json").resolve()  # a link stays one: what it points to is replaced
        files[file] = json_writer(content | {"sources": sources})
    write_together(files, raw)
    return Declaration(table, list(reversed(files)), cases_without_map(cases))


def _require_same_entries(folder: Path, theirs: Mapping[str, Any], raw: Path, ours: Mapping[str, Any]) -> None:
    for key in set(SHARED_KEYS) - {"sources"}:
        if theirs.get(key) != ours.get(key):
            raise SourceError(
                f"`{key}` differs between {raw / 'dataset.json'} ({json.dumps(ours.get(key))}) and "
                f"{folder / 'dataset.json'} ({json.dumps(theirs.get(key))}). Plan and preprocess the dataset again."
            )
