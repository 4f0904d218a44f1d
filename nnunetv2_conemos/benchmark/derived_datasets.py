"""Derive the datasets that arms train on from the partially labelled one: complete, annotated cases only, one label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.tags import without_tags
from nnunetv2_conemos.benchmark.config import Fold
from nnunetv2_conemos.benchmark.preparation import share_plans
from nnunetv2_conemos.benchmark.workspace import PARTIAL, Workspace
from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.partial_copy import COMPLETE
from nnunetv2_conemos.datasets.splits import Fold as SplitFold
from nnunetv2_conemos.datasets.writer import dataset_entries, jobs_of, write_cases
from nnunetv2_conemos.errors import MissingFileError, SourceError
from nnunetv2_conemos.files import new_folder, write_json

FULLY_ANNOTATED, ANNOTATED = "Dataset901_Complete", "Dataset903_Annotated"


def write_referenced(
    target: Path, dataset_json: Mapping[str, Any], files: Mapping[str, Any], splits: list[SplitFold] | None = None
) -> None:
    """Write a raw dataset of cases that lie elsewhere: a dataset.json, and a split if there is one."""
    with new_folder(target) as folder:
        write_json(folder / "dataset.json", {**dataset_json, "dataset": dict(files), "numTraining": len(files)})
        if splits:
            write_json(folder / "splits_final.json", splits)


def complete_dataset(workspace: Workspace, fold: Fold) -> str:
    """Make a dataset of the same cases with their complete label maps, which `conemos hide` keeps; return its name.

    Raises FileNotFoundError where they were not kept.
    """
    maps = (workspace.raw / PARTIAL if workspace.recipe.hide else workspace.source) / COMPLETE
    if not maps.is_dir():
        raise MissingFileError(
            f"no complete label maps: {workspace.source} was not made by `conemos hide` or `split` of a complete "
            "dataset."
        )
    raw = workspace.raw / FULLY_ANNOTATED
    if not raw.is_dir():
        ending = workspace.dataset_json["file_ending"]
        files = {
            case: {"images": entry["images"], "label": str(maps / f"{case}{ending}")}
            for case, entry in raw_cases(workspace.raw / PARTIAL).items()
        }
        every = list(workspace.labels.names)
        content = without_tags(workspace.dataset_json)
        sources = {name: {**source, "annotated": every} for name, source in content["sources"].items()}
        write_referenced(raw, {**content, "sources": sources}, files)
    share_plans(workspace, raw.name, fold)
    return raw.name


def annotated_dataset(workspace: Workspace, fold: Fold) -> str:
    """Make a dataset of the cases that are annotated for something; raises SourceError where all are."""
    raw = workspace.raw / ANNOTATED
    if not raw.is_dir():
        files = raw_cases(workspace.raw / PARTIAL)
        annotated = {case: entry for case, entry in files.items() if workspace.table.known(case).any()}
        if len(annotated) == len(files):
            raise SourceError("every training case is annotated for something: there are none to leave out.")
        content = without_tags(workspace.dataset_json)
        sources = {name: source for name, source in content["sources"].items() if source["annotated"]}
        write_referenced(raw, {**content, "sources": sources}, annotated)
    share_plans(workspace, raw.name, fold)
    return raw.name


def one_label_dataset(workspace: Workspace, k: int, fold: Fold, processes: int) -> str:
    """Make a dataset of the cases that are annotated for label k (from 1), with that label alone; return its name.

    Raises SourceError where there is no such case.
    """
    raw = workspace.raw / f"Dataset{100 + k}_Only_{k}"
    if not raw.is_dir():
        write_one_label(workspace, k, raw, processes)
    share_plans(workspace, raw.name, fold)
    return raw.name


def write_one_label(workspace: Workspace, k: int, raw: Path, processes: int) -> None:
    labels, dataset_json = workspace.labels, workspace.dataset_json
    name, values = labels.names[k - 1], labels.values[k - 1]
    cases = raw_cases(workspace.raw / PARTIAL)
    files = {case: entry for case, entry in cases.items() if workspace.table.known(case)[k - 1]}
    if not files:
        raise SourceError(f"no case is annotated for {name}.")
    mapping = {0: 0, **{value: int(value in values) for others in labels.values for value in others}}
    entries = {"background": 0, name: 1}
    if labels.ignore is not None:
        mapping[labels.ignore] = entries["ignore"] = 2
    jobs = [job._replace(values=mapping) for job in jobs_of(dataset_json, files)]
    ending = dataset_json["file_ending"]
    dropped = (*OWN_KEYS, "regions_class_order")
    content = {key: value for key, value in dataset_json.items() if key not in dropped}
    content |= {"labels": entries, "dataset": dataset_entries(jobs, ending), "numTraining": len(jobs)}
    with new_folder(raw) as folder:
        write_cases(jobs, folder, ending, "reference", processes, f"Label {k} of {len(labels)}")
        write_json(folder / "dataset.json", content)
