"""Copy a raw dataset with fewer annotations; complete maps are kept unchanged in the copy, in `labelsTr_complete`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import EVERYTHING, SourceTable
from nnunetv2_conemos.annotations.table_file import PATIENT, Annotated, group_sources
from nnunetv2_conemos.annotations.tags import Axis, slices_of
from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS, read_raw_json
from nnunetv2_conemos.datasets.folders import raw_cases, source_table
from nnunetv2_conemos.datasets.label_maps import visible_values
from nnunetv2_conemos.datasets.volumes import read_label_map
from nnunetv2_conemos.datasets.writer import CaseJob, Images, dataset_entries, jobs_of, write_cases
from nnunetv2_conemos.files import Writer, new_folder, require_no_inputs_within, write_json
from nnunetv2_conemos.parallel import in_processes

COMPLETE = "labelsTr_complete"
KEPT_KEYS = ("modality", "dataset", "domain", "weight")  # what a source says beside cases and labels


@dataclass(frozen=True)
class Original:
    """A raw dataset as read: `files` is case -> {'images': [files], 'label': file}."""

    folder: Path
    dataset_json: dict[str, Any]
    files: dict[str, dict[str, Any]]
    table: SourceTable


@dataclass(frozen=True)
class CopyPlan:
    """A copy before anything is written: its dataset.json, who annotated what, and a job for each case."""

    original: Original
    dataset_json: dict[str, Any]
    table: SourceTable
    jobs: list[CaseJob]


def read_original(raw: Path) -> Original:
    """Read a raw dataset; raises SourceError, ValueError or OSError that names what is wrong with it."""
    dataset_json = read_raw_json(raw)
    files = raw_cases(raw)
    return Original(raw, dataset_json, files, source_table(raw, dataset_json, files))


def plan_copy(original: Original, annotated: Annotated, tags: Axis | None = None, processes: int = 1) -> CopyPlan:
    """Plan a copy that keeps, of each case in `annotated`, only these labels; other cases are left out.

    `tags`: the axis along which the slices that show a hidden label stay known.
    """
    jobs = hidden_jobs(original, annotated)
    result = {key: value for key, value in original.dataset_json.items() if key not in ("dataset", *OWN_KEYS)}
    result |= {"numTraining": len(jobs), "sources": hidden_sources(original, annotated, tags is not None)}
    if tags:
        result["tags"] = {"axis": tags, "cases": hidden_tags(original, jobs, annotated, tags, processes)}
    return CopyPlan(original, result, SourceTable.from_dataset_json(result, [job.case for job in jobs]), jobs)


def hidden_jobs(original: Original, annotated: Annotated) -> list[CaseJob]:
    """Return a job for each case in `annotated` that writes a map of these labels and no others."""
    files = {case: entry for case, entry in original.files.items() if case in annotated}
    jobs = jobs_of(original.dataset_json, files)
    return [job._replace(values=kept_values(original.table.labels, annotated[job.case])) for job in jobs]


def hidden_sources(original: Original, annotated: Annotated, tagged: bool = False) -> dict[str, dict[str, Any]]:
    """Build `sources` of the copy; modality, dataset, domain, weight and patients stay."""
    sources, before = {}, original.table
    for name, source in before.sources.items():
        own = {key: value for key, value in source.model_dump(exclude_defaults=True).items() if key in KEPT_KEYS}
        cases = {case: annotated[case] for case in before.cases_of(name) if case in annotated}
        dataset = original.folder.name if name == EVERYTHING else name
        patients = {case: {PATIENT: before.patients[case]} for case in cases if case in before.patients}
        for group, entry in group_sources(cases, before.labels, dataset, patients).items():
            hidden = [label for label in source.annotated if label not in entry["annotated"]]
            if tagged and hidden:
                group, entry = f"{group}, tags" if entry["annotated"] else "tags", entry | {"tagged": hidden}
            sources[group if name == EVERYTHING else f"{name}: {group}"] = entry | own
    return sources


def hidden_tags(
    original: Original, jobs: list[CaseJob], annotated: Annotated, axis: Axis, processes: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return case -> hidden label -> the slices along `axis` that show it."""
    table = original.table
    hidden = {job.case: [n for n in table.annotated(job.case) if n not in annotated[job.case]] for job in jobs}
    of_cases = [(job, table.labels, hidden[job.case], axis) for job in jobs if hidden[job.case]]
    found = in_processes(tags_of_map, of_cases, processes, "Reading tags")
    return {job.case: tags for (job, *_), tags in zip(of_cases, found, strict=True)}


def tags_of_map(job: CaseJob, labels: LabelSpace, names: list[str], axis: Axis) -> dict[str, tuple[int, ...]]:
    """Return label -> the slices along `axis` in which the map of a case shows it."""
    assert job.label is not None  # only annotated labels are hidden
    label_map = read_label_map(job.label, job.reader).data
    return {name: slices_of(np.isin(label_map, labels.values[labels.names.index(name)]), axis) for name in names}


def kept_values(labels: LabelSpace, annotated: list[str]) -> dict[int, int]:
    """Return old -> new values; all 0 where nothing is annotated, since nnU-Net counts ignore as foreground."""
    values = visible_values(labels, annotated)
    return values if annotated else dict.fromkeys(values, 0)


@contextmanager
def write_copy(
    copy: CopyPlan,
    target: Path,
    images: Images,
    processes: int,
    overwrite: bool,
    beside: Mapping[Path, Writer] | None = None,
) -> Iterator[Path]:
    """Write a copy whole or not at all; yields its temporary folder, to which the block can add further files.

    `beside`: files outside of it that are written together with it.
    """
    original, ending = copy.original, copy.dataset_json["file_ending"]
    files = [Path(file) for entry in original.files.values() for file in (*entry["images"], entry["label"])]
    require_no_inputs_within(target, files)
    entries = {"dataset": dataset_entries(copy.jobs, ending)} if images == "reference" else {}
    with new_folder(target, overwrite, beside) as folder:
        write_cases(copy.jobs, folder, ending, images, processes, "Hiding labels")
        if all(original.table.known(job.case).all() for job in copy.jobs):
            (folder / COMPLETE).mkdir()
            for job in copy.jobs:
                shutil.copyfile(original.files[job.case]["label"], folder / COMPLETE / f"{job.case}{ending}")
        yield folder
        write_json(folder / "dataset.json", copy.dataset_json | entries)
