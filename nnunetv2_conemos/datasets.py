"""Where a dataset lies on disk: raw, preprocessed, its cases, and whether the two copies of dataset.json agree."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets, maybe_convert_to_dataset_name
from nnunetv2.utilities.utils import (
    create_lists_from_splitted_dataset_folder,
    get_filenames_of_train_images_and_targets,
)
from pydantic import BaseModel, Field, ValidationError

from nnunetv2_conemos.sources import SourceError, shorten

OWN_KEYS = ("sources", "tags")  # what this package adds to nnU-Net's dataset.json
SHARED_KEYS = ("labels", "regions_class_order", *OWN_KEYS)  # what raw and preprocessed must agree on


def write_aside(file: Path, write: Callable[[Path], Any]) -> None:
    """Write aside, then rename: a reader never sees half a file."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    write(aside)
    aside.replace(file)


def write_json(path: Path, content: Any) -> None:
    write_aside(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder beside `target` that becomes it at the end, or leaves nothing behind where the block raises.

    Raises FileExistsError where `target` exists, unless it is to be replaced.
    """
    refuse_existing(target, overwrite)
    aside = target.with_name(f".{target.name}.unfinished")
    remove(aside)  # of a run that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        put_in_place(aside, target)
    finally:
        remove(aside)


def refuse_existing(target: Path, overwrite: bool) -> None:
    if os.path.lexists(target) and not overwrite:
        raise FileExistsError(f"{target} exists. Choose another name, or say --overwrite to replace it.")


def refuse_own_files(target: Path, files: Iterable[Path]) -> None:
    """Raises ValueError where files that are still needed lie in the folder to be written."""
    own = next((file for file in files if target.resolve() in file.resolve().parents), None)
    if own is not None:
        raise ValueError(f"{target} holds files that the result is made of ({own}). Choose another name.")


def put_in_place(aside: Path, target: Path) -> None:
    """Rename a finished folder; what it replaces is deleted last, and put back if renaming fails."""
    replaced = target.with_name(f".{target.name}.replaced")
    remove(replaced)
    if os.path.lexists(target):
        target.replace(replaced)
    try:
        aside.replace(target)
    except BaseException:
        if os.path.lexists(replaced):
            replaced.replace(target)
        raise
    remove(replaced)


def remove(path: Path) -> None:
    """Delete a folder, a file or a link, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def refuse_existing_dataset(target: Path, overwrite: bool) -> None:
    """Raises FileExistsError where a raw dataset exists that is not to be replaced, or was preprocessed before.

    nnU-Net would go on with the old fingerprint, and end in an assertion where the folds differ.
    """
    refuse_existing(target, overwrite)
    folder = Path(nnUNet_preprocessed) / target.name if nnUNet_preprocessed.is_set() else None
    if folder is not None and folder.is_dir():
        raise FileExistsError(
            f"{folder} was preprocessed from an earlier {target.name}. Delete it, or choose another name."
        )


def new_dataset_folder(name: str) -> Path:
    """Raw folder for a dataset yet to be written, from a name (in nnUNet_raw) or a path.

    Raises ValueError for a name that nnU-Net would not find again, or whose id another dataset has.
    """
    folder = Path(name)
    if not re.fullmatch(r"Dataset\d{3}_\w[\w.-]*", folder.name):
        raise ValueError(f"'{name}': a dataset is named Dataset100_Name: three digits, then a name without blanks.")
    if folder.name == name.rstrip("/"):
        if not nnUNet_raw.is_set():
            raise FileNotFoundError(
                "nnUNet_raw is not set. Set it to the folder that holds raw datasets, or say a path."
            )
        folder = Path(nnUNet_raw) / folder.name
    others = set(find_candidate_datasets(int(folder.name[7:10]))) - {folder.name}
    if others:
        raise ValueError(f"'{folder.name}': its id belongs to {', '.join(sorted(others))} already. Choose another id.")
    return folder


def dataset_name(name_or_id: str | int) -> str:
    """`Dataset004_Hippocampus` from a name or an id, as nnU-Net resolves it; FileNotFoundError in its words."""
    try:
        return maybe_convert_to_dataset_name(name_or_id)
    except RuntimeError as error:  # lists the folders that nnU-Net looked in
        raise FileNotFoundError(str(error)) from None


def raw_folder(name: str) -> Path | None:
    """Raw folder of a dataset, or None where nnUNet_raw is not set or does not hold it."""
    return _existing(nnUNet_raw, name)


def preprocessed_folder(name: str) -> Path | None:
    """Preprocessed folder of a dataset, or None where nnUNet_preprocessed is not set or does not hold it."""
    return _existing(nnUNet_preprocessed, name)


def _existing(base: Any, name: str) -> Path | None:
    folder = Path(base) / name if base.is_set() else None
    return folder if folder is not None and (folder / "dataset.json").is_file() else None


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """dataset.json of a folder; raises ValueError where it is no JSON object."""
    return read_object(folder / "dataset.json")


def read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:  # bad JSON, or bytes that are no text
        raise ValueError(f"{file}: not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected an object with `labels`, found {type(content).__name__}.")
    return content


class CaseEntry(BaseModel):
    """A case in nnU-Net's `dataset` key."""

    images: list[str] = Field(min_length=1)
    label: str


class LabelMaps(BaseModel):
    """What a dataset.json must say of its label maps."""

    labels: dict[str, int | list[int]]
    file_ending: str


class RawDataset(LabelMaps):
    """What nnU-Net requires of the dataset.json of a raw dataset."""

    channel_names: dict[str, str]
    dataset: dict[str, CaseEntry] | None = None


def read_raw_json(folder: Path) -> dict[str, Any]:
    """dataset.json of a raw dataset; raises ValueError as `refuse_malformed` does."""
    return read_checked(folder / "dataset.json", RawDataset)


def read_checked(file: Path, model: type[BaseModel]) -> dict[str, Any]:
    """A dataset.json; raises ValueError as `refuse_malformed` does."""
    content = read_object(file)
    refuse_malformed(content, file, model)
    return content


def refuse_malformed(content: dict[str, Any], file: Path, model: type[BaseModel] = RawDataset) -> None:
    """Raises ValueError that names file, key, what is expected and what was found."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']} (found {e['input']!r})" for e in error.errors())
        raise ValueError(f"{file}: {wrong[:600]}") from None


def raw_cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Case -> {'images': [files], 'label': file} of a raw dataset, as nnU-Net finds them."""
    return get_filenames_of_train_images_and_targets(str(folder), read_dataset_json(folder))


def image_lists(folder: Path, ending: str) -> list[list[str]]:
    """The image files of each case in a folder, as nnU-Net finds them; raises ValueError for names without channel."""
    strays = [file.name for file in folder.glob(f"*{ending}") if not re.search(r"_\d{4}$", file.name[: -len(ending)])]
    if strays:
        found = shorten(sorted(strays))
        raise ValueError(f"{folder}: expected images CASE_0000{ending}, found {found}. Move them away.")
    return create_lists_from_splitted_dataset_folder(str(folder), ending)


def preprocessed_cases(configuration_folder: Path) -> list[str]:
    """Identifiers of the cases preprocessed for one configuration."""
    dataset_class = infer_dataset_class(str(configuration_folder))
    return sorted(dataset_class.get_identifiers(str(configuration_folder)))


def refuse_different_tables(name: str) -> None:
    """Raises SourceError where the raw and the preprocessed dataset.json disagree on labels or sources.

    nnU-Net copies dataset.json when it plans and trains on the copy; an edit of the raw file alone would be ignored.
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
