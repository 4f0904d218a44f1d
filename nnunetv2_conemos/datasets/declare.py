"""`conemos declare DATASET --annotated FILE`: turn a table case -> annotated labels into the `sources` of dataset.json.

Cases that are annotated alike become one source. The raw dataset.json and an existing preprocessed copy are both
written or both left as they were: nnU-Net copies the file only when it plans, and trains on the copy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import NO_TRAITS, Annotated, complete_table, group_sources
from nnunetv2_conemos.datasets.dataset_json import SHARED_KEYS, read_dataset_json, read_raw_json
from nnunetv2_conemos.datasets.folders import find_raw, preprocessed_folder, raw_cases
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.files import write_together


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
    dataset_json = read_raw_json(raw)
    labels = LabelSpace.from_dataset_json(dataset_json)
    cases = raw_cases(raw)
    rest = {"unlabelled": [], "all": list(labels.names), None: None}[missing]
    sources = group_sources(complete_table(annotated, cases, rest), labels, name, traits)
    table = SourceTable.from_dataset_json(dataset_json | {"sources": sources}, cases)
    files = {}
    for folder in filter(None, (raw, preprocessed_folder(name))):
        content = read_dataset_json(folder)
        _require_same_entries(folder, content, raw, dataset_json)
        if content.get("sources", sources) != sources and not overwrite:
            raise SourceError(
                f"{folder / 'dataset.json'} already has other `sources`. Say --overwrite to replace them."
            )
        files[folder / "dataset.json"] = content | {"sources": sources}
    write_together(files)
    return table, list(files)


def _require_same_entries(folder: Path, theirs: Mapping[str, Any], raw: Path, ours: Mapping[str, Any]) -> None:
    for key in set(SHARED_KEYS) - {"sources"}:
        if theirs.get(key) != ours.get(key):
            raise SourceError(
                f"`{key}` differs between {raw / 'dataset.json'} ({json.dumps(ours.get(key))}) and "
                f"{folder / 'dataset.json'} ({json.dumps(theirs.get(key))}). Plan and preprocess the dataset again."
            )
