"""Read and validate a dataset.json: first by what nnU-Net requires, then by what it accepts although it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name
from pydantic import AfterValidator, BaseModel, Field, StrictStr, ValidationError

from nnunetv2_conemos.annotations.names import is_text
from nnunetv2_conemos.datasets.label_rules import check_labels
from nnunetv2_conemos.errors import InputError, SourceError, describe, shorten
from nnunetv2_conemos.text_files import read_object

OWN_KEYS = ("sources", "tags")  # what this package adds to nnU-Net's dataset.json
SHARED_KEYS = ("labels", "regions_class_order", *OWN_KEYS)  # what raw and preprocessed must agree on
READER = "overwrite_image_reader_writer"
DEFAULT_READER = "None"  # the word by which dataset.json leaves the choice to nnU-Net


def _file_name(name: str) -> str:
    if not name.strip() or not is_text(name):
        raise ValueError("expected the name of a file")
    return name


FileName = Annotated[StrictStr, AfterValidator(_file_name)]


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read the dataset.json of a folder; raises ValueError where it is not a JSON object."""
    return read_object(folder / "dataset.json")


class CaseEntry(BaseModel):
    """One case in the key `dataset`, by which nnU-Net finds images elsewhere."""

    images: list[FileName] = Field(min_length=1)
    label: FileName


class LabelMaps(BaseModel):
    """Entries that a dataset.json must have about label maps."""

    labels: dict[str, Any]
    file_ending: StrictStr
    overwrite_image_reader_writer: StrictStr = DEFAULT_READER


class RawDataset(LabelMaps):
    """Entries that nnU-Net requires in the dataset.json of a raw dataset."""

    channel_names: dict[str, StrictStr]
    dataset: dict[str, CaseEntry] = {}


def read_raw_json(folder: Path, consecutive: bool = True) -> dict[str, Any]:
    """Read the dataset.json of a raw dataset; raises what `read_checked` does."""
    return read_checked(folder / "dataset.json", RawDataset, consecutive)


def read_checked(file: Path, model: type[LabelMaps], consecutive: bool = True) -> dict[str, Any]:
    """Read a dataset.json that nnU-Net and this package can work with; without `consecutive`, label ids may have gaps.

    Raises SourceError naming file, key, what is expected and what was found, for any other.
    """
    content = read_object(file)
    if problems := find_problems(content, model, consecutive):
        raise SourceError(f"{file}: {problems[0]}")
    return content


def check_trained_labels(dataset_json: dict[str, Any], folder: Path) -> None:
    """Raise SourceError, naming the file, where the labels in the preprocessed copy of a dataset cannot be trained."""
    file = folder / "dataset.json"
    for content in (dataset_json, *([read_object(file)] if file.is_file() else [])):
        try:
            check_labels(content)
        except SourceError as error:
            raise SourceError(f"{file}: {error} Then plan and preprocess again.") from None


def find_problems(content: dict[str, Any], model: type[LabelMaps] = RawDataset, consecutive: bool = True) -> list[str]:
    """Return what is wrong with a dataset.json: key, what is expected, what was found, and the remedy."""
    if "modality" in content and "channel_names" not in content and model is RawDataset:
        return ["expected `channel_names`, found `modality`, its name in nnU-Net v1. Rename the key."]
    try:
        model.model_validate(content)
    except ValidationError as error:
        return [f"{describe(error)}. Correct the file."]
    checks: list[Callable[[dict[str, Any]], Any]] = [lambda content: check_labels(content, consecutive)]
    checks += [require_ending, require_reader, *([require_channels] if model is RawDataset else [])]
    problems = []
    for check in checks:
        try:
            check(content)
        except InputError as error:
            problems.append(str(error))
    return problems


def require_channels(content: dict[str, Any]) -> None:
    """Raise InputError where `channel_names` are not numbered 0, 1, ... in this order: nnU-Net goes by the order."""
    channels = content["channel_names"]
    if not channels or list(channels) != [str(number) for number in range(len(channels))]:
        wanted = ", ".join(f'"{number}"' for number in range(max(1, len(channels))))
        raise InputError(
            f"`channel_names`: expected the keys {wanted}, in this order, found "
            f"{shorten(map(repr, channels)) or 'none'}. Number the channels as the files CASE_0000, CASE_0001, ..."
        )
    if nameless := [number for number, name in channels.items() if not name.strip() or not is_text(name)]:
        raise InputError(f"`channel_names`: expected a name for channel {shorten(nameless)}, found none. Name it.")


def require_ending(content: dict[str, Any]) -> None:
    """Raise InputError for a `file_ending` that no reader of nnU-Net's has."""
    ending, known = content["file_ending"], [e for io in LIST_OF_IO_CLASSES for e in io.supported_file_endings]
    chosen = content.get(READER, DEFAULT_READER) != DEFAULT_READER  # nnU-Net then asks for no ending
    if not (ending.startswith(".") and is_text(ending) and "/" not in ending and (chosen or ending.lower() in known)):
        raise InputError(
            f"`file_ending`: expected one that nnU-Net reads, {', '.join(dict.fromkeys(known))}, found {ending!r:.80}. "
            "Correct it, or convert the files."
        )


def require_reader(content: dict[str, Any]) -> None:
    """Raise InputError for a reader that nnU-Net does not have: it would silently choose another one."""
    name = content.get(READER, DEFAULT_READER)
    if name == DEFAULT_READER:
        return
    try:
        reader = recursive_find_reader_writer_by_name(name)
    except RuntimeError:
        reader = None
    if not (isinstance(reader, type) and issubclass(reader, BaseReaderWriter) and reader is not BaseReaderWriter):
        known = ", ".join(io.__name__ for io in LIST_OF_IO_CLASSES)
        raise InputError(f"`{READER}`: expected one of {known}, found {name!r:.80}. Correct or remove the key.")
