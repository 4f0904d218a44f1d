"""Datasets that arms train on, made from the partially labelled one: complete, annotated only, one label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.tags import without_tags
from nnunetv2_conemos.benchmark.config import Fold
from nnunetv2_conemos.benchmark.workspace import CEILING, PARTIAL, Workspace
from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.partial_copy import COMPLETE
from nnunetv2_conemos.datasets.writer import dataset_entries, jobs_of, write_cases
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.files import new_folder, write_json

ANNOTATED = "Dataset903_Annotated"


def write_referenced(
    target: Path, dataset_json: Mapping[str, Any], files: Mapping[str, Any], splits: list | None = None
) -> None:
    """A raw dataset of cases that lie elsewhere: nothing but a dataset.json, and a split if there is one."""
    with new_folder(target) as folder:
        write_json(folder / "dataset.json", {**dataset_json, "dataset": dict(files), "numTraining": len(files)})
        if splits:
            write_json(folder / "splits_final.json", splits)


def complete_dataset(place: Workspace, fold: Fold) -> str:
    """The same cases with their complete label maps, which `conemos hide` keeps; raises FileNotFoundError."""
    maps = (place.raw / PARTIAL if place.recipe.hide else place.source) / COMPLETE
    if not maps.is_dir():
        raise FileNotFoundError(
            f"no complete label maps: {place.source} was not made by `conemos hide` or `split` of a complete dataset."
        )
    if not (place.raw / CEILING).is_dir():
        ending = place.dataset_json["file_ending"]
        files = {
            case: {"images": entry["images"], "label": str(maps / f"{case}{ending}")}
            for case, entry in raw_cases(place.raw / PARTIAL).items()
        }
        every = list(place.labels.names)
        content = without_tags(place.dataset_json)
        sources = {name: {**source, "annotated": every} for name, source in content["sources"].items()}
        write_referenced(place.raw / CEILING, {**content, "sources": sources}, files)
    place.share_plans(CEILING, fold)
    return CEILING


def annotated_dataset(place: Workspace, fold: Fold) -> str:
    """The cases that are annotated for something; raises SourceError where all are."""
    table, raw = place.table, place.raw / ANNOTATED
    if not raw.is_dir():
        files = raw_cases(place.raw / PARTIAL)
        annotated = {case: entry for case, entry in files.items() if table.known(case).any()}
        if len(annotated) == len(files):
            raise SourceError("every training case is annotated for something: there are none to leave out.")
        content = without_tags(place.dataset_json)
        sources = {name: source for name, source in content["sources"].items() if source["annotated"]}
        write_referenced(raw, {**content, "sources": sources}, annotated)
    place.share_plans(ANNOTATED, fold)
    return ANNOTATED


def one_label_dataset(place: Workspace, k: int, fold: Fold) -> str:
    """The cases that are annotated for label k (from 1), with that label alone."""
    name = f"Dataset{100 + k}_Only_{k}"
    raw, table, labels = place.raw / name, place.table, place.labels
    if not raw.is_dir():
        files = {case: files for case, files in raw_cases(place.raw / PARTIAL).items() if table.known(case)[k - 1]}
        if not files:
            raise SourceError(f"no case is annotated for {labels.names[k - 1]}.")
        shown = {value: int(value in labels.values[k - 1]) for values in labels.values for value in values}
        entries = {"background": 0, labels.names[k - 1]: 1}
        if labels.ignore is not None:
            shown[labels.ignore] = entries["ignore"] = 2
        jobs = [job._replace(values={0: 0, **shown}) for job in jobs_of(place.dataset_json, files)]
        ending = place.dataset_json["file_ending"]
        dropped = (*OWN_KEYS, "regions_class_order")
        content = {key: value for key, value in place.dataset_json.items() if key not in dropped}
        content |= {"labels": entries, "dataset": dataset_entries(jobs, ending), "numTraining": len(jobs)}
        with new_folder(raw) as folder:
            write_cases(jobs, folder, ending, "reference", place.processes, f"Label {labels.names[k - 1]}")
            write_json(folder / "dataset.json", content)
    place.share_plans(name, fold)
    return name
