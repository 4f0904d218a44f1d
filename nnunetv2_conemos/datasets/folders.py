"""Where a dataset lies on disk: raw or preprocessed, its cases, and whether the two copies of dataset.json agree."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets, maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from nnunetv2_conemos.annotations.names import require_case_ids
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import SHARED_KEYS, read_dataset_json
from nnunetv2_conemos.errors import ExistingFileError, InputError, MissingFileError, SourceError, shorten
from nnunetv2_conemos.files import require_absent

_ENDINGS = "Correct `file_ending` of dataset.json, or convert the files."
NO_MAP = "nnU-Net needs one for each case: for an unlabelled case, a map of zeros (never the ignore label)."


def find_raw(dataset: str | int) -> tuple[str, Path]:
    """Return full name and raw folder of a dataset given by name or id.

    Raises FileNotFoundError, which says where nnU-Net looked.
    """
    name = dataset_name(dataset)
    raw = raw_folder(name)
    if raw is None:
        raise MissingFileError(
            f"there is no {name}/dataset.json in nnUNet_raw ({nnUNet_raw.get() or 'not set'}). "
            "Set this variable to the folder that holds the dataset."
        )
    return name, raw


def named_or_path(dataset: str | int | Path) -> Path:
    """Return the raw folder of a dataset given by path, name or id; raises FileNotFoundError where there is none."""
    dataset = str(dataset)
    folder = Path(dataset)
    return folder.resolve() if holds_dataset(folder) else find_raw(dataset)[1]


def holds_dataset(folder: Path) -> bool:
    """Return whether a folder holds a dataset.json; False also for what cannot be a path, such as too long a name."""
    return os.path.isfile(folder / "dataset.json")


def cases_without_map(cases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the cases (see `raw_cases`) whose label file does not exist."""
    return [str(case) for case, files in cases.items() if not Path(files["label"]).is_file()]


def require_new_dataset(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError where a raw dataset exists without `overwrite`, or where it was preprocessed before.

    In the latter case, nnU-Net would keep the old fingerprint, and fail with an assertion where the folds differ.
    """
    require_absent(target, overwrite)
    folder = Path(nnUNet_preprocessed) / target.name if nnUNet_preprocessed.is_set() else None
    if folder is not None and folder.is_dir():
        raise ExistingFileError(
            f"{folder} was preprocessed from an earlier {target.name}. Delete it, or choose another name."
        )


def new_dataset_folder(dataset: str | Path) -> Path:
    """Return the raw folder for a new dataset, given by name (in nnUNet_raw) or path.

    Raises ValueError for a name that nnU-Net would not find again, or whose id another dataset has.
    """
    name = str(dataset)
    folder = Path(name)
    if not re.fullmatch(r"Dataset\d{3}_\w[\w.-]*", folder.name):
        raise InputError(f"'{name}': expected a name like Dataset100_Name: three digits, then a name without spaces.")
    if folder.name == name.rstrip("/"):
        if not nnUNet_raw.is_set():
            raise MissingFileError(
                "nnUNet_raw is not set. Set it to the folder that holds raw datasets, or give a path."
            )
        folder = Path(nnUNet_raw) / folder.name
    others = set(find_candidate_datasets(int(folder.name[7:10]))) - {folder.name}
    if others:
        raise InputError(f"'{folder.name}': its id already belongs to {', '.join(sorted(others))}. Choose another id.")
    return folder


def dataset_name(name_or_id: str | int) -> str:
    """Return the full name (Dataset004_Hippocampus) for a name or an id, as nnU-Net resolves it.

    Raises FileNotFoundError with nnU-Net's own message.
    """
    try:
        return maybe_convert_to_dataset_name(name_or_id)
    except (RuntimeError, ValueError) as error:  # lists the folders that nnU-Net looked in
        raise MissingFileError(str(error)) from None


def raw_folder(name: str) -> Path | None:
    """Return the raw folder of a dataset, or None where nnUNet_raw is not set or does not hold it."""
    return _existing(nnUNet_raw, name)


def preprocessed_folder(name: str) -> Path | None:
    """Return the preprocessed folder of a dataset, or None where nnUNet_preprocessed is not set or lacks it."""
    return _existing(nnUNet_preprocessed, name)


def _existing(base: Any, name: str) -> Path | None:
    folder = Path(base) / name if base.is_set() else None
    return folder if folder is not None and (folder / "dataset.json").is_file() else None


def raw_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Return case -> {'images': [files], 'label': file} of a raw dataset, as nnU-Net finds them.

    Raises InputError for case ids that are no names of files, and what `find_images` does.
    """
    dataset_json = read_dataset_json(folder)
    if "dataset" in dataset_json:
        require_case_ids(dataset_json["dataset"], f"{folder / 'dataset.json'}, `dataset`")
        return get_filenames_of_train_images_and_targets(str(folder), dataset_json)
    ending = dataset_json["file_ending"]
    return {
        case: {"images": images, "label": str(folder / "labelsTr" / f"{case}{ending}")}
        for case, images in find_images(folder / "imagesTr", ending).items()
    }


def find_images(folder: Path, ending: str) -> dict[str, list[str]]:
    """Return case -> its files CASE_0000.ENDING in order of channels, as nnU-Net finds them.

    nnU-Net's own look-up gives the same (tests compare them), but forks twelve processes and compares every file with
    every case. Raises InputError, unlike nnU-Net, for names without a channel, which it would misread, for channels
    that are not 0000, 0001, ..., and for case ids that are no names of files.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}. Images are {folder.name}/CASE_0000{ending}.")
    files = sorted(file.name for file in folder.iterdir() if file.is_file())
    wanted = [name for name in files if name.endswith(ending)]
    if wanted != files and not wanted:
        raise InputError(f"{folder}: expected images CASE_0000{ending}, found {shorten(files)}. {_ENDINGS}")
    channels: dict[str, list[str]] = {}
    nameless = [name for name in wanted if not re.fullmatch(r".*_[0-9]{4}", name.removesuffix(ending), re.DOTALL)]
    if nameless:
        raise InputError(
            f"{folder}: expected images CASE_0000{ending}, with the number of the channel, found "
            f"{shorten(map(repr, nameless))}. Rename or remove them."
        )
    for name in wanted:
        channels.setdefault(name.removesuffix(ending)[:-5], []).append(name)
    require_case_ids(channels, str(folder))
    for case, names in channels.items():
        expected = [f"{case}_{channel:04d}{ending}" for channel in range(len(names))]
        if names != expected:
            raise InputError(
                f"{folder}, case '{case}': expected {shorten(expected)}, found {shorten(names)}. nnU-Net would take "
                "one channel for another: rename the files, or add the missing one."
            )
    return {case: [str(folder / name) for name in names] for case, names in sorted(channels.items())}


def image_lists(folder: Path, ending: str) -> list[list[str]]:
    """Return the image files of each case in a folder, as nnU-Net finds them; raises what `find_images` does."""
    return list(find_images(folder, ending).values())


def source_table(folder: Path, dataset_json: Mapping[str, Any], cases: Iterable[str]) -> SourceTable:
    """Build the source table of a folder's dataset.json; raises SourceError that names the file."""
    try:
        return SourceTable.from_dataset_json(dataset_json, cases)
    except SourceError as error:
        raise SourceError(f"{folder / 'dataset.json'}: {error}") from None


def preprocessed_cases(configuration_folder: Path) -> list[str]:
    """Return the identifiers of the cases preprocessed for one configuration, sorted.

    Raises FileNotFoundError where there is none.
    """
    try:
        dataset_class = infer_dataset_class(str(configuration_folder))
    except (AssertionError, KeyError):
        raise MissingFileError(
            f"{configuration_folder}: expected preprocessed cases, found none, or files of several formats. Preprocess "
            "again (nnUNetv2_preprocess)."
        ) from None
    return sorted(dataset_class.get_identifiers(str(configuration_folder)))


def require_same_tables(name: str) -> None:
    """Raise SourceError where the raw and the preprocessed dataset.json disagree on labels, sources or tags.

    nnU-Net copies dataset.json when it plans and trains on the copy, so it would ignore a later edit of the raw file.
    """
    raw, preprocessed = raw_folder(name), preprocessed_folder(name)
    if raw is None or preprocessed is None:
        return
    ours, theirs = read_dataset_json(raw), read_dataset_json(preprocessed)
    for key in SHARED_KEYS:
        if ours.get(key) != theirs.get(key):
            raise SourceError(
                f"{name}: `{key}` differs between raw and preprocessed dataset.json.\n"
                f"  {raw / 'dataset.json'}: {json.dumps(ours.get(key))}\n"
                f"  {preprocessed / 'dataset.json'}: {json.dumps(theirs.get(key))}\n"
                "Copy the right file over the other (`conemos declare` updates both), "
                "or plan and preprocess again if `labels` changed."
            )


def preprocessed_table(plans: dict, configuration: str, dataset_json: dict) -> SourceTable:
    """Build the source table of the cases preprocessed for a configuration; raises FileNotFoundError if none."""
    folder = preprocessed_data(plans, configuration)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} does not exist. Run nnUNetv2_preprocess for configuration {configuration}.")
    return source_table(folder.parent, dataset_json, preprocessed_cases(folder))


def preprocessed_data(plans: dict, configuration: str) -> Path:
    """Return the folder of the cases preprocessed for a configuration."""
    identifier = PlansManager(plans).get_configuration(configuration).data_identifier
    return Path(nnUNet_preprocessed) / plans["dataset_name"] / identifier
