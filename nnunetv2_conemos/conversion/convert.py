"""The way back: label maps and predictions in the forms that clinics read, a folder for each case."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from nnunetv2_conemos.annotations.entries import parse_sources
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.conversion.origins import ORIGINS, Origin, read_origins
from nnunetv2_conemos.conversion.report import FOLDER
from nnunetv2_conemos.conversion.segment_files import read_layers
from nnunetv2_conemos.datasets.dataset_json import LabelMaps, read_checked, read_raw_json
from nnunetv2_conemos.datasets.folders import holds_dataset, named_or_path, raw_cases, source_table
from nnunetv2_conemos.datasets.volumes import naming
from nnunetv2_conemos.errors import InputError, MissingFileError, VolumeError, shorten
from nnunetv2_conemos.files import new_folder, require_no_inputs_within
from nnunetv2_conemos.parallel import in_processes

Form = Literal["masks", "segmentation", "rtstruct", "dicomseg"]
Values = Mapping[str, tuple[int, ...]]  # label -> its values in a map

# form -> what is written for a case by `write(label_map, images, labels, target)` of the module of its name; the images
# are the files that the case came from, which only DICOM needs
WRITTEN = MappingProxyType({
    "masks": "segmentations", "segmentation": "segmentation.seg.nrrd",
    "rtstruct": "rtstruct.dcm", "dicomseg": "segmentation.dcm",
})  # fmt: skip
NEEDS_SERIES = ("rtstruct", "dicomseg")


class Map(NamedTuple):
    """A label map, the labels to write of it, and all values that it may hold."""

    case: str
    file: Path
    labels: Values
    values: frozenset[int]


@dataclass(frozen=True)
class Converted:
    """Result of `convert`: the folder written, its cases, and the labels written of at least one of them."""

    folder: Path
    cases: int
    labels: tuple[str, ...]


def convert(
    maps: Path | str,
    output: Path | str,
    *,
    form: Form,
    dataset: str | Path | None = None,
    origins: Path | None = None,
    labels: Sequence[str] | None = None,
    processes: int = 1,
    overwrite: bool = False,
) -> Converted:
    """Write label maps or predictions as masks, .seg.nrrd, RT structure sets or DICOM SEG, in a folder for each case.

    Args:
        maps: a folder of predictions, or a raw dataset, of which only what is annotated is written.
        output: the folder to write; its folders have the names that the cases had before an import.
        form: `masks`, `segmentation` (.seg.nrrd), `rtstruct` or `dicomseg`.
        dataset: raw dataset whose labels the predictions have. Default: dataset.json among the predictions.
        origins: table of where the cases came from, of an import. Default: that of `maps` or of the dataset, if any.
        labels: those to write. Default: all that were annotated in some training case.
        processes: how many write cases; more than one requires a script with `if __name__ == "__main__":`.
        overwrite: replace a folder that this function wrote.

    Raises InputError for labels and maps that do not fit together, MissingFileError where there are no maps, or no
    series for a form of DICOM, VolumeError (an OSError) for maps that cannot be read.
    """
    target = Path(output)
    raw = raw_dataset(maps)
    found = annotated_maps(raw) if raw else predicted_maps(Path(maps), dataset)
    if labels is not None:
        found = [one._replace(labels=chosen(one.labels, labels, found)) for one in found]
    table = origins_of_cases(origins, [Path(maps), *([raw] if raw else [named_or_path(dataset)] if dataset else [])])
    if form in NEEDS_SERIES:
        require_series([one.case for one in found], table, form)
    require_no_inputs_within(target, [one.file for one in found])
    with new_folder(target, overwrite) as folder:
        jobs = [(one, table.get(one.case), form, folder) for one in found if one.labels]
        in_processes(convert_case, jobs, processes, "Writing cases")
    written = tuple(dict.fromkeys(label for one in found for label in one.labels))
    return Converted(target, len(jobs), written)


def raw_dataset(maps: Path | str) -> Path | None:
    """Return the folder of a raw dataset given by path, name or id; None for a folder of predictions."""
    folder = Path(maps)
    if not (folder.is_dir() or folder.name.isdecimal() or folder.name.startswith("Dataset")):
        raise MissingFileError(f"there is no folder {maps}. Name the folder of predictions, or a raw dataset.")
    if folder.is_dir() and not (holds_dataset(folder) and (folder / "labelsTr").is_dir()):
        return None
    return named_or_path(maps)


def annotated_maps(raw: Path) -> list[Map]:
    """Return the label maps of a raw dataset, each with the labels that it is annotated for."""
    dataset_json, files = read_raw_json(raw), raw_cases(raw)
    table, values = source_table(raw, dataset_json, files), values_of(dataset_json)
    every = frozenset(value for own in values.values() for value in own)
    maps = []
    for case, entry in files.items():
        annotated = {label: values[label] for label in table.annotated(case)}
        maps.append(Map(str(case), Path(entry["label"]), annotated, every))
    return maps


def predicted_maps(folder: Path, dataset: str | Path | None) -> list[Map]:
    """Return the predictions in a folder, each with the labels that the model learnt."""
    source = folder if dataset is None else named_or_path(dataset)
    if not holds_dataset(source):
        raise MissingFileError(
            f"{source}: expected dataset.json, as nnU-Net writes it beside predictions, found none. Name the dataset "
            "of the model with --dataset."
        )
    dataset_json = read_checked(source / "dataset.json", LabelMaps)
    values, ending = values_of(dataset_json), dataset_json["file_ending"]
    if dataset is not None and holds_dataset(folder):
        require_same_labels(values, folder, source)
    sources = parse_sources(dataset_json["sources"]).values() if "sources" in dataset_json else ()
    learnt = {label for one in sources for label in (*one.annotated, *one.tagged)} or values.keys()
    files = sorted(file for file in folder.iterdir() if file.name.endswith(ending) and not file.name.startswith("."))
    if not files:
        raise MissingFileError(
            f"{folder}: expected label maps CASE{ending}, found none. Name the folder of predictions."
        )
    labels = {label: own for label, own in values.items() if label in learnt}
    every = frozenset(value for own in values.values() for value in own)
    return [Map(file.name.removesuffix(ending), file, labels, every) for file in files]


def require_same_labels(values: Values, folder: Path, source: Path) -> None:
    """Raise InputError where the model that predicted had other labels than the dataset that is named."""
    own = values_of(read_checked(folder / "dataset.json", LabelMaps))
    if wrong := [label for label in {**own, **values} if own.get(label) != values.get(label)]:
        raise InputError(
            f"--dataset {source}: expected the labels of {folder / 'dataset.json'}, found others "
            f"({shorten(wrong)}). Name the dataset of the model, or leave --dataset out."
        )


def values_of(dataset_json: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return label or region -> its values, in the order of a dataset.json."""
    space = LabelSpace.from_dataset_json(dataset_json)
    return dict(zip(space.names, space.values, strict=True))


def chosen(own: Values, wanted: Sequence[str], maps: Sequence[Map]) -> dict[str, tuple[int, ...]]:
    """Return the labels of a map that are wanted; raises InputError for one that no map has."""
    known = dict.fromkeys(label for one in maps for label in one.labels)
    if unknown := [label for label in wanted if label not in known]:
        raise InputError(f"--labels: expected some of {shorten(known, 20)}, found {shorten(unknown)}.")
    return {label: values for label, values in own.items() if label in wanted}


def origins_of_cases(given: Path | None, folders: Sequence[Path]) -> dict[str, Origin]:
    """Return the origins of cases from the table given, or from those that an import left in the folders."""
    if given is not None:
        return read_origins(given)
    places = [place for folder in folders for place in (folder / ORIGINS, folder / FOLDER / ORIGINS)]
    return next((read_origins(place) for place in places if place.is_file()), {})


def require_series(cases: Sequence[str], origins: Mapping[str, Origin], form: str) -> None:
    """Raise MissingFileError for cases whose series of DICOM images is not known, or gone."""
    lacking = [case for case in cases if case not in origins]
    gone = [case for case in cases if case in origins and not all(file.is_file() for file in origins[case].images)]
    if lacking or gone:
        raise MissingFileError(
            f"--as {form}: expected the DICOM series of each case, found none for {shorten([*lacking, *gone])}. Name "
            f"the {ORIGINS} of their import with --origins, and restore the series where they were."
        )


def convert_case(one: Map, origin: Origin | None, form: str, folder: Path) -> None:
    """Write a case; raises VolumeError for values of its map that no label has."""
    with naming(one.case):
        foreign = {int(value) for value in read_layers(one.file).values()} - one.values
        if foreign:
            raise VolumeError(
                f"{one.file}: expected the values {shorten(map(str, sorted(one.values)))}, found also "
                f"{shorten(map(str, sorted(foreign)))}.",
                "Name the dataset of the model with --dataset.",
            )
        own = folder / (origin.original if origin else one.case)
        own.mkdir()
        writer = importlib.import_module(f"nnunetv2_conemos.conversion.writers.{form}")
        writer.write(one.file, origin.images if origin else (), one.labels, own / WRITTEN[form])
