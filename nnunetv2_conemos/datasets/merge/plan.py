"""Plan a merge: what the new dataset.json says, and what to do for each case; nothing is written yet."""

from __future__ import annotations

import glob
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.names import require_case_ids
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import PATIENT, group_sources
from nnunetv2_conemos.datasets.label_maps import shown
from nnunetv2_conemos.datasets.merge.labels import UnifiedLabels
from nnunetv2_conemos.datasets.merge.sources import Facts, SourceDataset
from nnunetv2_conemos.datasets.merge.spec import Recipe
from nnunetv2_conemos.datasets.writer import CaseJob, common_ending, dataset_entries
from nnunetv2_conemos.errors import InputError, SourceError, shorten

NORMALISATION = {  # nnU-Net's schemes, in words
    "CTNormalization": "intensities clipped and scaled by those of all cases together, as fits Hounsfield units",
    "ZScoreNormalization": "each image scaled by its own mean and standard deviation",
    "NoNormalization": "intensities as they are",
    "RescaleTo01Normalization": "each image scaled to 0 to 1 by its own minimum and maximum",
    "RGBTo01Normalization": "intensities divided by 255",
}


@dataclass(frozen=True)
class Plan:
    """A merge before anything is written: the new dataset.json, who annotated what, and a job for each case."""

    datasets: list[SourceDataset]
    dataset_json: dict[str, Any]
    table: SourceTable
    jobs: list[CaseJob]
    notes: list[str]


def plan_merge(datasets: list[SourceDataset], labels: UnifiedLabels, recipe: Recipe) -> Plan:
    """Plan the result; raises SourceError or ValueError where channels, case ids, images or tags do not fit."""
    channels = datasets[0].channels
    ending = common_ending([dataset.files.ending for dataset in datasets], recipe.file_ending)
    jobs = [job for dataset in datasets for job in case_jobs(dataset, channels, labels)]
    require_unique(jobs)
    dataset_json: dict[str, Any] = {
        "channel_names": {str(place): channel for place, channel in enumerate(channels)},
        "labels": labels.entries,
        "numTraining": len(jobs),
        "file_ending": ending,
    }
    if labels.order:
        dataset_json["regions_class_order"] = labels.order
    reader, notes = common_reader(datasets, ending)
    if reader:
        dataset_json["overwrite_image_reader_writer"] = reader
    if recipe.images == "reference" and not recipe.orientation:
        dataset_json["dataset"] = dataset_entries(jobs, ending)
    cases = [job.case for job in jobs]
    dataset_json["sources"] = merged_sources(datasets, LabelSpace.from_dataset_json(dataset_json), cases)
    if tags := merged_tags(datasets):
        dataset_json["tags"] = tags
    table = SourceTable.from_dataset_json(dataset_json, cases)
    notes += [note for dataset in datasets for note in normalisation_notes(dataset)]
    return Plan(datasets, dataset_json, table, jobs, [*labels.notes, *notes])


def case_jobs(dataset: SourceDataset, channels: Sequence[str], labels: UnifiedLabels) -> list[CaseJob]:
    """Return what to write for each case; labels that are not annotated in a case become background there."""
    order, value_of, (ending, reader, _) = channel_order(dataset, channels), labels.value_of, dataset.files
    jobs = []
    for case in dataset.cases.values():
        values = {0: 0}
        values |= {value: shown(names, case.annotated, value_of) for value, names in dataset.labels.space.items()}
        if dataset.labels.ignore is not None:
            values[dataset.labels.ignore] = labels.ignore or 0
        images = case.images
        if len(images) == len(order):
            images = tuple(images[place] for place in order)
        elif order != sorted(order):
            raise InputError(f"dataset '{dataset.name}': channels of colour images cannot change places.")
        jobs.append(CaseJob(case.id, images, case.label, values, ending, reader, len(order)))
    return jobs


def channel_order(dataset: SourceDataset, channels: Sequence[str]) -> list[int]:
    """Return the place of each merged channel among a dataset's own; raises ValueError where they do not match."""
    own = dataset.channels
    if own == tuple(channels):
        return list(range(len(channels)))
    if sorted(own) != sorted(channels) or len(set(channels)) < len(channels):
        raise InputError(
            f"dataset '{dataset.name}': expected the channels {', '.join(channels)}, found {', '.join(own)}. "
            f"Map them with --channels {shlex.quote(f'{dataset.spec.origin}:OLD=NEW')} if they mean the same."
        )
    return [own.index(channel) for channel in channels]


def common_reader(datasets: Sequence[SourceDataset], ending: str) -> tuple[str | None, list[str]]:
    """Return the reader that every dataset requires, if it reads the result, and a note where they differ."""
    wanted = {dataset.files.required_reader for dataset in datasets}
    if len(wanted) > 1:
        return None, [f"`overwrite_image_reader_writer` differs ({shorten(sorted(map(str, wanted)))}); it is left out."]
    reader: Any = datasets[0].files.reader
    return (wanted.pop() if ending in reader.supported_file_endings else None), []


def normalisation_notes(dataset: SourceDataset) -> list[str]:
    """Return a note for each channel that nnU-Net will normalise otherwise than under the dataset's own name for it."""
    notes = []
    for own, merged in zip(dataset.own_channels, dataset.channels, strict=True):
        before, after = (get_normalization_scheme(name).__name__ for name in (own, merged))
        if before != after:
            notes.append(
                f"dataset '{dataset.name}': channel '{own}' became '{merged}', and nnU-Net chooses the normalisation "
                f"by that name: {after} ({NORMALISATION.get(after, 'its own')}) instead of {before} "
                f"({NORMALISATION.get(before, 'its own')}). If its images are of another kind than those of the other "
                "datasets, as MR is than CT, give the channel of all of them one other name: --channels OLD=NEW."
            )
    return notes


def require_unique(jobs: Sequence[CaseJob]) -> None:
    """Raise ValueError for equal case ids (regardless of upper or lower case) and for images in several cases."""
    require_case_ids((job.case for job in jobs), "merge")
    ids = [job.case.casefold() for job in jobs]
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise InputError(f"the same case id twice: {shorten(twice)}. Give a dataset another `name` in a recipe.")
    images = Counter(file.resolve() for job in jobs for file in job.images)
    again = [str(file) for file, times in images.items() if times > 1]
    if again:
        raise InputError(f"the same image in several cases: {shorten(again)}. Name its folder once.")


def merged_sources(
    datasets: Sequence[SourceDataset], labels: LabelSpace, cases: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Build `sources` of the result: one per dataset, or several where its cases differ in labels or facts."""
    sources: dict[str, dict[str, Any]] = {}
    for dataset in datasets:
        groups = source_groups(dataset, narrowed(labels, dataset.labels.names))
        if len(groups) == 1:
            ((_, group),) = groups
            everyone = [case for case in cases if case.startswith(f"{dataset.name}_")]
            if len(everyone) == len(dataset.cases):
                group = {**group, "cases": [f"{glob.escape(dataset.name)}_*"]}
            groups = [(dataset.name, group)]
        for name, group in groups:
            trait = group.get("domain") or group["modality"]
            sources[name if name not in sources else f"{name} ({trait}, {len(sources)})"] = group
    return sources


def source_groups(dataset: SourceDataset, labels: LabelSpace) -> list[tuple[str, dict[str, Any]]]:
    """Group the cases of a dataset with the same labels, tags and facts: name and entry of a source for each group."""
    alike: dict[tuple[Facts, tuple[str, ...]], dict[str, list[str]]] = {}
    patients = {case.id: {PATIENT: case.patient} for case in dataset.cases.values() if case.patient}
    for case in dataset.cases.values():
        alike.setdefault((case.facts, case.tagged), {})[case.id] = sorted(case.annotated)
    groups = []
    for (facts, tagged), annotated in alike.items():
        for name, group in group_sources(annotated, labels, dataset.name, patients).items():
            entry = {**group, **facts.entry(), **({"tagged": tagged} if tagged else {})}
            groups.append((f"{dataset.name}: {name}", entry))
    return groups


def narrowed(labels: LabelSpace, names: Collection[str]) -> LabelSpace:
    """Return only the labels of one dataset, so that a source is named after those of them that it lacks."""
    kept = [(name, values) for name, values in zip(labels.names, labels.values, strict=True) if name in names]
    return replace(labels, names=tuple(name for name, _ in kept), values=tuple(values for _, values in kept))


def merged_tags(datasets: Sequence[SourceDataset]) -> Mapping[str, Any] | None:
    """Build `tags` of the result, if any; raises SourceError where datasets count slices along different axes."""
    axes = {dataset.name: dataset.tag_axis for dataset in datasets if dataset.tag_axis}
    if len(set(axes.values())) > 1:
        counted = ", ".join(f"along {axis} in {name}" for name, axis in axes.items())
        raise SourceError(f"`tags` count slices {counted}. Merge datasets that count along one axis.")
    cases = {case.id: case.tags for dataset in datasets for case in dataset.cases.values() if case.tags}
    return {"axis": next(iter(axes.values())), "cases": cases} if axes else None
