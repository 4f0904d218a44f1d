"""Settings of a merge, as records: the same for the command line, a YAML recipe and Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nnunetv2_conemos.annotations.entries import Patients
from nnunetv2_conemos.datasets.folders import holds_dataset
from nnunetv2_conemos.datasets.orientations import anatomical
from nnunetv2_conemos.datasets.writer import Images
from nnunetv2_conemos.errors import InputError, describe
from nnunetv2_conemos.text_files import read_yaml

Name = Annotated[str, Field(min_length=1)]
Orientation = Annotated[str, AfterValidator(anatomical)]


class DatasetSpec(BaseModel):
    """One dataset of a merge, or a folder of unlabelled images.

    `dataset`: id, name or path of a raw dataset; `images`: folder of CASE_0000.ENDING files instead. `name` starts the
    case ids. `annotated`: table case -> labels where the cases are annotated for different labels. `rename` and `drop`
    name the dataset's own labels, and so do the parts of `regions` (region -> labels that make it up). `channels`: own
    channel name -> merged one. `modality`, `domain` and `weight` become those of the source. `patient` (glob over the
    dataset's own cases -> patient) says which cases are of one patient.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str | None = None
    images: Path | None = None
    name: str | None = Field(default=None, pattern=r"^[\w.-]+$")
    annotated: Path | None = None
    rename: dict[str, Name] = {}
    drop: tuple[str, ...] = ()
    regions: dict[Name, tuple[str, ...]] = {}
    channels: dict[str, str] = {}
    modality: str | None = None
    domain: Name | None = None
    patient: Patients = {}
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_origin(self) -> DatasetSpec:
        if (self.dataset is None) == (self.images is None):
            raise InputError("name either `dataset` or `images`")
        return self

    @property
    def origin(self) -> str:
        """The dataset or folder as it was named."""
        return str(self.dataset or self.images)


class Recipe(BaseModel):
    """The recipe of a merge: its datasets, and the options that hold for all of them.

    `rename`, `drop` and `channels` apply to every dataset that has the name (at least one must); labels in `keep_apart`
    stay one per dataset. `images` and `file_ending` say how the files of the result are kept; `orientation` (such
    as LPS) brings all of them to one order of axes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    datasets: tuple[DatasetSpec, ...] = Field(min_length=1)
    rename: dict[str, Name] = {}
    drop: tuple[str, ...] = ()
    channels: dict[str, str] = {}
    keep_apart: tuple[str, ...] = ()
    images: Images = "reference"
    file_ending: Name | None = None
    orientation: Orientation | None = None


def read_recipe(file: Path) -> Recipe:
    """Read a YAML recipe, its paths relative to its folder; raises ValueError that names the entry that is wrong."""
    where = f"--recipe {file}"
    return absolute(checked_recipe(read_yaml(file, where), where), file.parent)


def checked_recipe(content: Any, where: str) -> Recipe:
    """Return a recipe with this content; raises ValueError that names `where` and the entry that is wrong."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}.") from None


def absolute(recipe: Recipe, folder: Path = Path()) -> Recipe:
    """Make the paths of a recipe, relative to `folder`, absolute."""

    def full(path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.abspath(folder / path))

    def dataset(name: str | None) -> str | None:
        return str(full(Path(name))) if name and holds_dataset(folder / name) else name

    changed = [
        spec.model_copy(
            update={
                "dataset": dataset(spec.dataset),
                "images": full(spec.images),
                "annotated": full(spec.annotated),
            }
        )
        for spec in recipe.datasets
    ]
    return recipe.model_copy(update={"datasets": tuple(changed)})


def recipe_text(recipe: Recipe) -> str:
    """Return a recipe as YAML, without what is left at its default."""
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
