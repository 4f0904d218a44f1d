"""`conemos merge`: several raw datasets, each annotated for other labels, become one with `sources`.

Labels are joined by name. The result is written aside and renamed at the end; what it is made of is only read.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import group_sources
from nnunetv2_conemos.datasets.check import count_occurrences
from nnunetv2_conemos.datasets.folders import require_new_dataset
from nnunetv2_conemos.datasets.inspect import CaseContent
from nnunetv2_conemos.datasets.label_maps import Signature, label_entries, not_written, union
from nnunetv2_conemos.datasets.merge.load import Facts, Part, case_id, case_jobs, load_parts
from nnunetv2_conemos.datasets.merge.report import MergeReport, write_report
from nnunetv2_conemos.datasets.merge.spec import Recipe, recipe_text
from nnunetv2_conemos.datasets.splits import write_split
from nnunetv2_conemos.datasets.writer import CaseJob, Held, common_ending, dataset_entries, input_files, write_cases
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.files import new_folder, require_no_inputs_within, write_json

RECIPE = "merge_recipe.yaml"


@dataclass(frozen=True)
class Plan:
    """A merge before anything is written: the new dataset.json, who annotated what, and what to do for each case."""

    parts: list[Part]
    dataset_json: dict[str, Any]
    table: SourceTable
    jobs: list[CaseJob]
    notes: list[str]


def plan_merge(recipe: Recipe) -> Plan:
    """Read the datasets and join their labels; raises SourceError, ValueError or OSError that names what is wrong."""
    parts = load_parts(recipe)
    names, values = union(part.space for part in parts)
    labels, order = label_entries(names, values)
    value_of: dict[Signature, int] = {signature: value for value, signature in enumerate(values, start=1)}
    ignore = len(values) + 1 if any(part.ignore is not None for part in parts) else None
    ending = common_ending([part.ending for part in parts], recipe.file_ending)
    jobs = [job for part in parts for job in case_jobs(part, parts[0].channels, value_of, ignore)]
    require_unique(jobs)
    dataset_json: dict[str, Any] = {
        "channel_names": {str(place): channel for place, channel in enumerate(parts[0].channels)},
        "labels": labels if ignore is None else {**labels, "ignore": ignore},
        "numTraining": len(jobs),
        "file_ending": ending,
    }
    if order:
        dataset_json["regions_class_order"] = order
    readers, first = {part.overwrite_reader for part in parts}, parts[0]
    common: Any = first.reader
    if len(readers) == 1 and first.overwrite_reader and ending in common.supported_file_endings:
        dataset_json["overwrite_image_reader_writer"] = first.overwrite_reader
    if recipe.images == "reference":
        dataset_json["dataset"] = dataset_entries(jobs, ending)
    notes = [
        f"a voxel of {' and '.join(sorted(lost))} cannot be written: the datasets disagree on what lies within what. "
        "Use --keep-apart for one of them."
        for lost in (not_written(labels, order, values) if order else ())
    ]
    if len(readers) > 1:
        notes.append(f"`overwrite_image_reader_writer` differs ({shorten(map(str, readers))}); it is left out.")
    cases = [job.case for job in jobs]
    dataset_json["sources"] = merged_sources(parts, LabelSpace.from_dataset_json(dataset_json), cases)
    if tags := merged_tags(parts):
        dataset_json["tags"] = tags
    return Plan(parts, dataset_json, SourceTable.from_dataset_json(dataset_json, cases), jobs, notes)


def require_unique(jobs: Sequence[CaseJob]) -> None:
    """Case ids must differ, also where a file system does not tell small from capital letters; so must images."""
    ids = [job.case.casefold() for job in jobs]
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise ValueError(f"the same case id twice: {shorten(twice)}. Give a dataset another `name` in a recipe.")
    images = Counter(file.resolve() for job in jobs for file in job.images)
    again = [str(file) for file, times in images.items() if times > 1]
    if again:
        raise ValueError(f"the same image in several cases: {shorten(again)}. Name its folder once.")


def merged_sources(parts: Sequence[Part], labels: LabelSpace, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`sources` of the result: one per dataset, or several where its cases differ in labels or facts."""
    sources: dict[str, dict[str, Any]] = {}
    for part in parts:
        alike: dict[Facts, dict[str, list[str]]] = {}
        for case, known in part.annotated.items():
            alike.setdefault(part.facts[case], {})[case_id(part, case)] = sorted(known)
        groups = [
            (f"{part.name}: {name}", {**group, **facts.entry()})
            for facts, annotated in alike.items()
            for name, group in group_sources(annotated, narrowed(labels, part.labels), part.name).items()
        ]
        if len(groups) == 1:
            everyone = [case for case in cases if case.startswith(f"{part.name}_")]
            globs = [f"{glob.escape(part.name)}_*"] if len(everyone) == len(part.files) else groups[0][1]["cases"]
            groups = [(part.name, groups[0][1] | {"cases": globs})]
        for name, group in groups:
            told = group.get("domain") or group["modality"]
            sources[name if name not in sources else f"{name} ({told}, {len(sources)})"] = group
    return sources


def merged_tags(parts: Sequence[Part]) -> dict[str, Any] | None:
    """`tags` of the result, if there are any; raises SourceError where datasets count slices along different axes."""
    axes = {part.name: part.tags.axis for part in parts if part.tags}
    if len(set(axes.values())) > 1:
        counted = ", ".join(f"along {axis} in {name}" for name, axis in axes.items())
        raise SourceError(f"`tags` count slices {counted}. Merge datasets that count along one axis.")
    cases = {case_id(p, case): tags for p in parts if p.tags for case, tags in p.tags.cases.items() if tags}
    return {"axis": next(iter(axes.values())), "cases": cases} if axes else None


def narrowed(labels: LabelSpace, names: Collection[str]) -> LabelSpace:
    """The labels of one dataset, so that a source is called after what it lacks of those."""
    kept = [(name, values) for name, values in zip(labels.names, labels.values, strict=True) if name in names]
    return replace(labels, names=tuple(name for name, _ in kept), values=tuple(values for _, values in kept))


def merge(recipe: Recipe, target: Path, overwrite: bool, processes: int) -> MergeReport:
    """Write the merged dataset; `target` appears whole or not at all."""
    plan = plan_merge(recipe)
    require_no_inputs_within(target, input_files(plan.jobs))
    require_new_dataset(target, overwrite)
    with new_folder(target, overwrite) as folder:
        ending = plan.dataset_json["file_ending"]
        found = write_cases(plan.jobs, folder, ending, recipe.images, processes, "Writing cases")
        notes = [*write_split(plan.table, folder), *plan.notes]
        written = [CaseContent(job.case, frozenset(job.values[v] for v in found[job.case].values)) for job in plan.jobs]
        occurs = count_occurrences(plan.table, written)
        report = MergeReport(
            plan.table, occurs, [*notes, *duplicate_notes(found), *hidden_notes(plan, found)], plan.parts
        )
        write_report(report, folder)
        (folder / RECIPE).write_text(recipe_text(recipe))
        write_json(folder / "dataset.json", plan.dataset_json)
    return report


def duplicate_notes(found: Mapping[str, Held]) -> list[str]:
    """Cases with the same image, voxel by voxel: collections borrow scans from each other."""
    alike: dict[str, list[str]] = {}
    for case, held in found.items():
        alike.setdefault(held.image, []).append(case)
    twice = [" = ".join(cases) for cases in alike.values() if len(cases) > 1]
    note = (
        f"the same image, voxel by voxel, in {len(twice)} group(s) of cases: {shorten(twice)}. One may train while "
        "another validates: keep one of each, or put them into the same fold of splits_final.json."
    )
    return [note] if twice else []


def hidden_notes(plan: Plan, found: Mapping[str, Held]) -> list[str]:
    """Labels that stand in maps of cases not annotated for them: they were left out, and that is said."""
    notes = []
    for part in plan.parts:
        cases: dict[str, list[str]] = {}
        for case, known in part.annotated.items():
            present = set().union(*(part.space.get(value, frozenset()) for value in found[case_id(part, case)].values))
            for label in present - known:
                cases.setdefault(label, []).append(case)
        for label, holders in sorted(cases.items()):
            notes.append(
                f"{part.name}: '{label}' was left out of {len(holders)} case(s) whose maps hold it although it is not "
                f"annotated there: {shorten(holders)}."
            )
    return notes
