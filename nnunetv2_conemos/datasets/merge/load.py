"""Read the datasets of a merge: their cases, channels and labels, under their names in the result."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

from nnunetv2_conemos.annotations.entries import Source, match_patients
from nnunetv2_conemos.annotations.labels import BACKGROUND, LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import PATIENT, complete_table, group_sources, read_table
from nnunetv2_conemos.annotations.tags import joined_tags
from nnunetv2_conemos.datasets.dataset_json import read_raw_json
from nnunetv2_conemos.datasets.folders import image_lists, named_or_path, raw_cases
from nnunetv2_conemos.datasets.merge.labels import Parts, parts_of, require_used_names, source_labels
from nnunetv2_conemos.datasets.merge.sources import Facts, FileFormat, SourceCase, SourceDataset, SourceLabels
from nnunetv2_conemos.datasets.merge.spec import DatasetSpec, Recipe
from nnunetv2_conemos.datasets.readers import reader_of
from nnunetv2_conemos.errors import InputError, MissingFileError, SourceError, shorten


def read_datasets(recipe: Recipe) -> list[SourceDataset]:
    """Read every dataset of a recipe; raises SourceError, ValueError or FileNotFoundError naming dataset and case."""
    folders = [folder_of(spec) for spec in recipe.datasets]
    twice = [str(folder) for folder in dict.fromkeys(folders) if folders.count(folder) > 1]
    if twice:
        raise InputError(f"named more than once: {shorten(twice)}. Name each dataset once.")
    found = list(zip(recipe.datasets, folders, dataset_names(recipe.datasets, folders), strict=True))
    labelled = [read_labelled(spec, folder, name, recipe) for spec, folder, name in found if spec.dataset is not None]
    if not labelled:
        raise InputError("expected at least one dataset with labels, found none.")
    require_used_names(recipe, labelled)
    unlabelled = [read_images(spec, folder, name, labelled[0]) for spec, folder, name in found if spec.dataset is None]
    return [*labelled, *unlabelled]


def folder_of(spec: DatasetSpec) -> Path:
    """Return the folder of a dataset or of unlabelled images; raises FileNotFoundError where there is none."""
    if spec.images is None:
        return named_or_path(spec.origin)
    if not spec.images.is_dir():
        raise MissingFileError(f"unlabelled images: there is no folder {spec.images}.")
    return spec.images


def dataset_names(specs: Sequence[DatasetSpec], folders: Sequence[Path]) -> list[str]:
    """Name each dataset: Dataset003_Liver is Liver, where that is unique; raises ValueError for equal names."""
    short = [folder.name.partition("_")[2] if folder.name.startswith("Dataset") else folder.name for folder in folders]
    names = [
        spec.name or (brief if short.count(brief) == 1 and brief else folder.name)
        for spec, folder, brief in zip(specs, folders, short, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"several datasets are called {shorten(twice)}. Give each a `name` of its own in a recipe.")
    return names


def read_labelled(spec: DatasetSpec, folder: Path, name: str, recipe: Recipe) -> SourceDataset:
    """Read a raw dataset; see `read_datasets` for what it raises."""
    dataset_json = read_raw_json(folder, consecutive=False)
    labels = LabelSpace.from_dataset_json(dataset_json, consecutive=False)
    files = raw_cases(folder)
    if not files:
        raise MissingFileError(f"{folder}: expected cases in imagesTr, found none. Images are CASE_0000.FILE_ENDING.")
    table = own_table(spec, dataset_json, labels, list(files), name)
    parts, renamed = parts_of(spec, labels, name, recipe)
    channels: list[str] = list(dataset_json["channel_names"].values())
    cases = read_cases(files, table, parts, spec, name, "+".join(channels))
    ending, required = dataset_json["file_ending"], dataset_json.get("overwrite_image_reader_writer")
    require_channels(cases, len(channels), name, ending)
    reader = reader_of(dataset_json, next(iter(cases.values())).images[0])
    merged_names = {**recipe.channels, **spec.channels}
    return SourceDataset(
        name,
        spec,
        cases,
        source_labels(parts, renamed, labels),
        tuple(channels),
        tuple(merged_names.get(channel, channel) for channel in channels),
        FileFormat(ending, reader, required),
        table.tag_axis if table and any(case.tags for case in cases.values()) else None,
    )


def own_table(
    spec: DatasetSpec, dataset_json: Mapping[str, Any], labels: LabelSpace, cases: list[str], name: str
) -> SourceTable | None:
    """Build a dataset's source table, by its own names, from the table given, its own `sources`, or as complete.

    None where a table is given in which nothing is annotated.
    """
    numbered = {
        BACKGROUND: 0,
        **{label: value for value, label in enumerate(labels.names, 1)},
    }  # own ones may have gaps
    try:
        if spec.annotated is None:
            return SourceTable.from_dataset_json({**dataset_json, "labels": numbered}, cases)
        given = read_table(spec.annotated)
        annotated = complete_table(given.annotated, cases, None)
        sources = group_sources(annotated, labels, traits=given.traits)
        if not any(annotated.values()):
            return None
        return SourceTable.from_dataset_json({**dataset_json, "labels": numbered, "sources": sources}, cases)
    except SourceError as error:
        raise SourceError(f"dataset '{name}': {error}") from None


def read_cases(
    files: Mapping[str, Mapping[str, Any]],
    table: SourceTable | None,
    parts: Parts,
    spec: DatasetSpec,
    name: str,
    channels: str,
) -> dict[str, SourceCase]:
    """Return the record of every case of a raw dataset; `channels`: its modality where none is declared."""
    patients = own_patients(files, table, spec, name)
    datasets_within = {source.dataset for source in table.sources.values()} if table else set()
    cases = {}
    for case, entry in files.items():
        source = table.sources[table.source_of(case)] if table else Source(cases=(case,), annotated=())
        known = set(source.annotated)
        annotated = frozenset(new for new, owns in parts.items() if known.issuperset(owns))
        facts = Facts(
            spec.modality or source.modality or channels,
            source.dataset if len(datasets_within) > 1 else None,  # of a dataset that was merged itself
            spec.domain or source.domain,
            spec.weight * source.weight,
        )
        cases[str(case)] = SourceCase(
            case_id(name, case),
            tuple(map(Path, entry["images"])),
            Path(entry["label"]) if annotated else None,
            annotated,
            facts,
            joined_tags(table.tags(case) if table else {}, parts),
            patients.get(case),
        )
    return cases


def own_patients(cases: Collection[str], table: SourceTable | None, spec: DatasetSpec, name: str) -> dict[str, str]:
    """Return case -> patient, under the names of the result, as a table, `sources` or the recipe declare it."""
    if table is not None:
        declared = table.patients
    else:  # nothing is annotated
        traits = read_table(spec.annotated).traits if spec.annotated else {}
        declared = {case: own[PATIENT] for case, own in traits.items() if PATIENT in own}
    declared = declared | match_patients(spec.patient, cases, f"dataset '{name}', `patient`")
    return {case: case_id(name, patient) for case, patient in declared.items()}


def case_id(dataset: str, case: str) -> str:
    """Return the id of a case in the result."""
    return f"{dataset}_{case}"


def read_images(spec: DatasetSpec, folder: Path, name: str, like: SourceDataset) -> SourceDataset:
    """Read a folder of unlabelled images, whose channels are, in order, those of another dataset."""
    endings = [ending for io in LIST_OF_IO_CLASSES for ending in io.supported_file_endings]
    present = [ending for ending in dict.fromkeys(endings) if any(folder.glob(f"*_0000{ending}"))]
    if len(present) != 1:
        found = present or sorted(file.name for file in folder.iterdir())
        raise MissingFileError(
            f"{folder}: expected images CASE_0000.ENDING of one kind, found {shorten(found) or 'none'}. Rename or "
            "convert them."
        )
    (ending,) = present
    facts = Facts(
        spec.modality or next(iter(like.cases.values())).facts.modality, domain=spec.domain, weight=spec.weight
    )
    found = {Path(files[0]).name.removesuffix(f"_0000{ending}"): files for files in image_lists(folder, ending)}
    patients, cases = own_patients(found, None, spec, name), {}
    for case, files in found.items():
        images = tuple(map(Path, files))
        cases[case] = SourceCase(case_id(name, case), images, None, frozenset(), facts, {}, patients.get(case))
    require_channels(cases, len(like.channels), name, ending)
    required = like.files.required_reader if ending == like.files.ending else None
    format_keys = {"file_ending": ending, "overwrite_image_reader_writer": required or "None"}
    reader = reader_of(format_keys, next(iter(cases.values())).images[0])
    labels = SourceLabels({}, {}, None)
    return SourceDataset(name, spec, cases, labels, like.channels, like.channels, FileFormat(ending, reader, required))


def require_channels(cases: Mapping[str, SourceCase], channels: int, name: str, ending: str) -> None:
    """Raise ValueError where a case lacks one file per channel; colour images hold all in one file, counted later."""
    for own, case in cases.items():
        if len(case.images) != channels and ending not in NaturalImage2DIO.supported_file_endings:
            raise InputError(
                f"dataset '{name}', case '{own}': expected {channels} channel(s), found {len(case.images)}: "
                f"{shorten(map(str, case.images))}."
            )
