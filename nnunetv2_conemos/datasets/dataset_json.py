"""Read and validate a dataset.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from nnunetv2_conemos.errors import InputError, describe
from nnunetv2_conemos.files import read_object

OWN_KEYS = ("sources", "tags")  # what this package adds to nnU-Net's dataset.json
SHARED_KEYS = ("labels", "regions_class_order", *OWN_KEYS)  # what raw and preprocessed must agree on


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read the dataset.json of a folder; raises ValueError where it is not a JSON object."""
    return read_object(folder / "dataset.json")


class CaseEntry(BaseModel):
    """One case in the key `dataset`, by which nnU-Net finds images elsewhere."""

    images: list[str] = Field(min_length=1)
    label: str


class LabelMaps(BaseModel):
    """Entries that a dataset.json must have about label maps."""

    labels: dict[str, int | list[int]]
    file_ending: str


class RawDataset(LabelMaps):
    """Entries that nnU-Net requires in the dataset.json of a raw dataset."""

    channel_names: dict[str, str]
    dataset: dict[str, CaseEntry] | None = None


def read_raw_json(folder: Path) -> dict[str, Any]:
    """Read the dataset.json of a raw dataset; raises ValueError as `check_schema` does."""
    return read_checked(folder / "dataset.json", RawDataset)


def read_checked(file: Path, model: type[BaseModel]) -> dict[str, Any]:
    """Read a dataset.json and validate it against a model; raises ValueError as `check_schema` does."""
    content = read_object(file)
    check_schema(content, file, model)
    return content


def check_schema(content: dict[str, Any], file: Path, model: type[BaseModel] = RawDataset) -> None:
    """Raise ValueError naming file, key, what is expected and what was found, where a model rejects a dataset.json."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{file}: {describe(error)}.") from None
