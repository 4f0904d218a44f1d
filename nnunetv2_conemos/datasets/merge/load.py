"""The datasets of a merge as they are found on disk: cases, channels, and labels under their merged names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import Source, SourceTable
from nnunetv2_conemos.annotations.table_file import complete_table, group_sources, read_table
from nnunetv2_conemos.annotations.tags import Tags, joined_tags
from nnunetv2_conemos.datasets.dataset_json import read_raw_json
from nnunetv2_conemos.datasets.folders import image_lists, named_or_path, raw_cases
from nnunetv2_conemos.datasets.label_maps import NOTHING, Signature, shown, signatures
from nnunetv2_conemos.datasets.merge.spec import Ingredient, Recipe
from nnunetv2_conemos.datasets.writer import CaseJob, reader_of
from nnunetv2_conemos.errors import SourceError, shorten


@dataclass(frozen=True)
class Files:
    """Image and label files of a case; no label map where nothing is annotated."""

    images: tuple[Path, ...]
    label: Path | None


class Facts(NamedTuple):
    """What the source of a case says beside its labels; the modality is that of its channels, unless somebody said."""

    modality: str
    dataset: str | None = None
    domain: str | None = None
    weight: float = 1.0
    tagged: tuple[str, ...] = ()

    def entry(self) -> dict[str, Any]:
        """Keys of a source, without what is left at its default."""
        return {key: value for key, value in self._asdict().items() if value != self._field_defaults.get(key)}


@dataclass(frozen=True)
class Part:
    """One dataset of a merge under merged names.

    `space`: value of its label maps -> labels; `annotated`: case -> labels somebody looked for; `renamed`: own name ->
    merged name, None where it was dropped; `facts` of every case; `tags` of its own cases.
    """

    name: str
    ingredient: Ingredient
    files: dict[str, Files]
    ending: str
    reader: BaseReaderWriter
    space: dict[int, Signature]
    annotated: dict[str, frozenset[str]]
    renamed: dict[str, str | None]
    channels: tuple[str, ...]
    facts: dict[str, Facts]
    ignore: int | None
    overwrite_reader: str | None
    tags: Tags | None

    @property
    def labels(self) -> set[str]:
        return set().union(*self.space.values())


def load_parts(recipe: Recipe) -> list[Part]:
    """Every dataset of a recipe; raises SourceError, ValueError or FileNotFoundError that names dataset and case."""
    folders = [folder_of(ingredient) for ingredient in recipe.datasets]
    twice = [str(folder) for folder in set(folders) if folders.count(folder) > 1]
    if twice:
        raise ValueError(f"named more than once: {shorten(twice)}.")
    names = part_names(recipe.datasets, folders)
    labelled = [
        load_labelled(ingredient, folder, name, recipe)
        for ingredient, folder, name in zip(recipe.datasets, folders, names, strict=True)
        if ingredient.dataset is not None
    ]
    if not labelled:
        raise ValueError("a merge needs at least one dataset with labels.")
    require_used_names(recipe, labelled)
    unlabelled = [
        load_images(ingredient, folder, name, labelled[0])
        for ingredient, folder, name in zip(recipe.datasets, folders, names, strict=True)
        if ingredient.dataset is None
    ]
    return [*labelled, *unlabelled]


def folder_of(ingredient: Ingredient) -> Path:
    if ingredient.images is not None:
        if not ingredient.images.is_dir():
            raise FileNotFoundError(f"unlabelled images: there is no folder {ingredient.images}.")
        return ingredient.images
    return named_or_path(ingredient.origin)


def part_names(ingredients: Sequence[Ingredient], folders: Sequence[Path]) -> list[str]:
    """Dataset003_Liver -> Liver, where that is unique; raises ValueError for given names that are not."""
    short = [folder.name.partition("_")[2] if folder.name.startswith("Dataset") else folder.name for folder in folders]
    names = [
        ingredient.name or (brief if short.count(brief) == 1 and brief else folder.name)
        for ingredient, folder, brief in zip(ingredients, folders, short, strict=True)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"several datasets are called {shorten(twice)}. Give each a `name` of its own in a recipe.")
    return names


def load_labelled(ingredient: Ingredient, folder: Path, name: str, recipe: Recipe) -> Part:
    """A raw dataset; see `load_parts` for what is refused."""
    dataset_json = read_raw_json(folder)
    labels = LabelSpace.from_dataset_json(dataset_json)
    found = raw_cases(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: expected cases in imagesTr, found none. Images are CASE_0000.FILE_ENDING.")
    table = own_table(ingredient, dataset_json, labels, list(found), name)
    parts, renamed = merged_labels(ingredient, labels, name, recipe)
    channels = [str(channel) for _, channel in sorted(dataset_json["channel_names"].items(), key=lambda c: int(c[0]))]
    datasets_within = {source.dataset for source in table.sources.values()} if table else set()
    annotated, facts, tags = {}, {}, {}
    for case in found:
        source = table.sources[table.source_of(case)] if table else Source(cases=(case,), annotated=())
        known = set(source.annotated)
        annotated[case] = frozenset(new for new, owns in parts.items() if known.issuperset(owns))
        modality = ingredient.modality or source.modality or "+".join(channels)
        tags[case] = joined_tags(table.tags(case) if table else {}, parts)
        domain, weight = ingredient.domain or source.domain, ingredient.weight * source.weight
        dataset = source.dataset if len(datasets_within) > 1 else None  # of a set that was merged itself
        facts[case] = Facts(modality, dataset, domain, weight, tuple(sorted(tags[case])))
    values = [[v for own in owns for v in labels.values[labels.names.index(own)]] for owns in parts.values()]
    every = {value: NOTHING for its_values in labels.values for value in its_values}
    files = {
        str(case): Files(tuple(map(Path, entry["images"])), Path(entry["label"]) if annotated[case] else None)
        for case, entry in found.items()
    }
    require_channels(files, len(channels), name, dataset_json["file_ending"])
    mapping = {**recipe.channels, **ingredient.channels}
    example = next(iter(files.values())).images[0]
    return Part(
        name, ingredient, files, dataset_json["file_ending"], reader_of(dataset_json, example),
        every | signatures(list(parts), values), annotated, renamed,
        tuple(mapping.get(channel, channel) for channel in channels), facts, labels.ignore,
        dataset_json.get("overwrite_image_reader_writer"),
        Tags(axis=table.tag_axis, cases=tags) if table and any(tags.values()) else None,
    )  # fmt: skip


def own_table(
    ingredient: Ingredient, dataset_json: Mapping[str, Any], labels: LabelSpace, cases: list[str], name: str
) -> SourceTable | None:
    """Who annotated what, by its own names: the table given, its own `sources`, or everything."""
    try:
        if ingredient.annotated is None:
            return SourceTable.from_dataset_json(dataset_json, cases)
        given = read_table(ingredient.annotated)
        annotated = complete_table(given.annotated, cases, None)
        sources = group_sources(annotated, labels, traits=given.traits)
        if not any(annotated.values()):
            return None
        return SourceTable.from_dataset_json({**dataset_json, "sources": sources}, cases)
    except SourceError as error:
        raise SourceError(f"dataset '{name}': {error}") from None


def merged_labels(
    ingredient: Ingredient, labels: LabelSpace, name: str, recipe: Recipe
) -> tuple[dict[str, list[str]], dict[str, str | None]]:
    """Merged name -> own labels that make it up, and own name -> merged name (None = dropped).

    Two labels renamed alike become one. Raises SourceError for names that the dataset does not have.
    """
    where = f"dataset '{name}'"
    for own in (*ingredient.rename, *ingredient.drop, *(part for owns in ingredient.regions.values() for part in owns)):
        labels.index(own, where)
    renames, dropped = {**recipe.rename, **ingredient.rename}, {*recipe.drop, *ingredient.drop}

    def final(new: str) -> str:
        return f"{new}_{name}" if new in recipe.keep_apart else new

    renamed = {own: None if own in dropped else final(renames.get(own, own)) for own in labels.names}
    parts: dict[str, list[str]] = {}
    for own, new in renamed.items():
        if new is not None:
            parts.setdefault(new, []).append(own)
    for region, owns in ingredient.regions.items():
        others = set(parts.get(final(region), ())) - set(owns)
        if others:
            raise SourceError(
                f"{where}: region '{region}' would hide the label {shorten(sorted(others))}: it has that name, and is "
                "no part of it. Name the region otherwise, or rename or drop the label."
            )
        parts[final(region)] = list(owns)
    reserved = parts.keys() & {"background", "ignore"}
    if reserved:
        raise SourceError(f"{where}: a label cannot be called {shorten(reserved)}; nnU-Net reserves the name.")
    return parts, renamed


def require_used_names(recipe: Recipe, parts: Sequence[Part]) -> None:
    """Names that no dataset has are mistakes."""
    own = {label for part in parts for label in part.renamed}
    apart = {label for part in parts for label in part.labels}
    for option, names in (("rename", recipe.rename), ("drop", recipe.drop)):
        for label in names:
            if label not in own:
                raise SourceError(f"{option}: no dataset has a label '{label}' ({', '.join(sorted(own))}).")
    for label in recipe.keep_apart:
        if not any(f"{label}_{part.name}" in apart for part in parts):
            raise SourceError(f"keep_apart: no dataset has a label '{label}' ({', '.join(sorted(own))}).")


def load_images(ingredient: Ingredient, folder: Path, name: str, like: Part) -> Part:
    """A folder of unlabelled images with the channels, in order, of another part."""
    endings = [ending for io in LIST_OF_IO_CLASSES for ending in io.supported_file_endings]
    present = [ending for ending in dict.fromkeys(endings) if any(folder.glob(f"*_0000{ending}"))]
    if len(present) != 1:
        raise FileNotFoundError(
            f"{folder}: expected images CASE_0000.ENDING of one kind, found {shorten(present) or 'none'}."
        )
    lists = image_lists(folder, present[0])
    files = {
        Path(images[0]).name.removesuffix(f"_0000{present[0]}"): Files(tuple(map(Path, images)), None)
        for images in lists
    }
    require_channels(files, len(like.channels), name, present[0])
    override = like.overwrite_reader if present[0] == like.ending else None
    facts = {"file_ending": present[0], "overwrite_image_reader_writer": override or "None"}
    reader = reader_of(facts, next(iter(files.values())).images[0])
    annotated = dict.fromkeys(files, frozenset[str]())
    modality = ingredient.modality or next(iter(like.facts.values())).modality
    return Part(
        name,
        ingredient,
        files,
        present[0],
        reader,
        {},
        annotated,
        {},
        like.channels,
        dict.fromkeys(files, Facts(modality, None, ingredient.domain, ingredient.weight)),
        None,
        override,
        None,
    )


def require_channels(files: Mapping[str, Files], channels: int, name: str, ending: str) -> None:
    """One file per channel; images in colour hold theirs in one, which is counted when it is read."""
    for case, entry in files.items():
        if len(entry.images) != channels and ending not in NaturalImage2DIO.supported_file_endings:
            raise ValueError(
                f"dataset '{name}', case '{case}': expected {channels} channel(s), found {len(entry.images)}: "
                f"{shorten(map(str, entry.images))}."
            )


def channel_order(part: Part, channels: Sequence[str]) -> list[int]:
    """Place of each merged channel among a part's own; raises ValueError where names or numbers differ."""
    if part.channels == tuple(channels):
        return list(range(len(channels)))
    if sorted(part.channels) != sorted(channels) or len(set(channels)) < len(channels):
        raise ValueError(
            f"dataset '{part.name}': expected the channels {', '.join(channels)}, found {', '.join(part.channels)}. "
            f"Map them with --channels '{part.ingredient.origin}:OLD=NEW' if they mean the same."
        )
    return [part.channels.index(channel) for channel in channels]


def case_id(part: Part, case: str) -> str:
    return f"{part.name}_{case}"


def case_jobs(
    part: Part, channels: Sequence[str], value_of: Mapping[Signature, int], ignore: int | None
) -> list[CaseJob]:
    """What to write for each case of a part: labels that are not annotated in a case become background there."""
    order, jobs = channel_order(part, channels), []
    for case, files in part.files.items():
        known = part.annotated[case]
        values = {0: 0} | {value: shown(signature, known, value_of) for value, signature in part.space.items()}
        if part.ignore is not None:
            values[part.ignore] = ignore or 0
        images = files.images
        if len(images) == len(order):
            images = tuple(images[place] for place in order)
        elif order != sorted(order):
            raise ValueError(f"dataset '{part.name}': channels of colour images cannot change places.")
        job = CaseJob(case_id(part, case), images, files.label, values, part.ending, part.reader, len(order))
        jobs.append(job)
    return jobs
