"""Recipes of benchmarks: what they compare."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nnunetv2_conemos.annotations.tags import Axis
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.training.variants import EPOCHS, STOCK

Fold = int | Literal["all"]
Optimiser = Literal["SGD", "AdamW"]
Kind = Literal["trainer", "vanilla", "annotated-only", "per-label", "completed", "ceiling"]
CONDITIONAL = "ConditionalFiLMTrainer"
OWN = (CONDITIONAL, "LabelSetFiLMTrainer")  # the package's own methods; the others are published
ALL_ARMS = (
    "vanilla", *OWN, "MultiTalentTrainer", "MarginalLossTrainer", "DoDNetTrainer", "MultiDecoderTrainer",
    "HermesTrainer", "UniMOSTrainer",
    "per-label", "completed", "ceiling", f"ceiling:{CONDITIONAL}",
)  # fmt: skip


def slug(name: str) -> str:
    """Convert a name to one that is safe in a file name."""
    return re.sub(r"[^\w.-]+", "_", name)


class Arm(BaseModel):
    """One way to get all labels; in a recipe, usually a single word.

    - `TRAINER`: that trainer on the partially labelled cases.
    - `vanilla`: stock nnU-Net on the same cases; what is not annotated counts as background.
    - `annotated-only` or `annotated-only:TRAINER`: stock nnU-Net, or TRAINER, without the unlabelled cases.
    - `per-label`: one stock network per label, each on the cases annotated for it; the most likely label wins.
    - `completed` or `completed:TRAINER`: TRAINER fills in what is missing, then stock nnU-Net trains on the result.
    - `ceiling` or `ceiling:TRAINER`: stock nnU-Net, or TRAINER, fully supervised (upper bound).

    As a mapping an arm can have a `name` of its own, another plans `configuration` and another `optimiser`.
    `prediction` names a configuration whose method options apply at prediction; the network is that of the same arm
    without this entry. `reference`: all arms are compared with this one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str
    name: str = ""
    configuration: str | None = None
    optimiser: Optimiser | None = None
    prediction: str | None = None
    reference: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"arm": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _complete(self) -> Arm:
        if not re.fullmatch(r"vanilla|per-label|(annotated-only|completed|ceiling)(:\w+)?|\w*Trainer\w*", self.arm):
            raise InputError(f"'{self.arm}' is not an arm: expected {', '.join(ALL_ARMS)} or the name of a trainer")
        if self.prediction and self.kind in ("per-label", "completed"):
            raise InputError(f"'{self.arm}' is not a single network of this package: expected no `prediction`")
        words = (self.arm, self.configuration, self.optimiser, self.prediction)
        object.__setattr__(self, "name", self.name or " ".join(filter(None, words)))
        return self

    @property
    def kind(self) -> Kind:
        head = self.arm.partition(":")[0]
        return head if head in get_args(Kind) else "trainer"  # pyright: ignore

    @property
    def trainer(self) -> str:
        """The trainer whose network predicts; for `completed` see also `teacher`."""
        given = self.arm.partition(":")[2]
        return {"trainer": self.arm, "completed": STOCK}.get(self.kind, given or STOCK)

    @property
    def is_own(self) -> bool:
        """Whether this is one of the package's own methods on the partial labels."""
        return self.kind in ("trainer", "annotated-only") and self.trainer in OWN

    @property
    def is_fully_supervised(self) -> bool:
        """Whether this is fully supervised (upper bound), not a baseline."""
        return self.kind == "ceiling"

    @property
    def teacher(self) -> Arm:
        """For `completed`: the arm whose network fills in the missing labels."""
        return self._training(self.arm.partition(":")[2] or CONDITIONAL)

    @property
    def trained(self) -> Arm:
        """For an arm with `prediction`: the arm whose network predicts."""
        return self._training(self.arm)

    def _training(self, arm: str) -> Arm:
        return Arm(arm=arm, configuration=self.configuration, optimiser=self.optimiser)


class Configuration(BaseModel):
    """A plans configuration made from another (see `small_configuration`); `conemos`: options of the method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = "3d_fullres"
    features: int | None = Field(default=None, ge=1)
    patch_size: tuple[int, ...] | None = None
    batch_size: int | None = Field(default=None, ge=1)
    conemos: dict[str, Any] = {}


class TestSet(BaseModel):
    """The folders of test images and of their complete label maps."""

    __test__ = False  # not a test for pytest
    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path
    labels: Path


class Hide(BaseModel):
    """Options that make a complete dataset partially labelled: those of `conemos hide`, by the same names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    per_case: int | None = None
    groups: Path | None = None
    fraction: float | None = None
    unlabelled: float | None = None
    tags: Axis | None = None
    seed: int = 0

    def words(self) -> list[str]:
        """Return the options as words of a command line."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


class Run(NamedTuple):
    """One training of an arm."""

    arm: Arm
    epochs: int
    seed: int
    fold: Fold

    @property
    def key(self) -> dict[str, Any]:
        """What identifies this run in the tables."""
        return {"arm": self.arm.name, "epochs": self.epochs, "seed": self.seed, "fold": str(self.fold)}

    @property
    def folder(self) -> str:
        return f"{slug(self.arm.name)}__{self.epochs}epochs__seed{self.seed}__fold{self.fold}"


class Recipe(BaseModel):
    """The recipe of a benchmark.

    - `dataset`: a partially labelled raw dataset (id, name or path), one that becomes so by `annotated` (a table case
      -> labels), or a complete one with `hide`.
    - `test`: default imagesTs and labelsTs of the dataset; `hold_out` takes that many of its completely annotated cases
      instead, sampled with `hold_out_seed`. `training_cases`: train on that many of the others (0: on all).
    - `configuration`: of the plans, for every arm: one of nnU-Net's or of `configurations`.
    - `epochs`: nnU-Net's, of 250 steps; with several, Dice is shown against steps.
    - `folds`: numbers, or `all`, which trains on every case.
    - `optimiser`: of every arm that names no other: nnU-Net's SGD, or its AdamW with a learning rate of 0.001, which
      short trainings require.
    - `mirroring`: false for labels that have a side. `tta`: mirror at prediction. `tolerance`: of the NSD, in mm.
    - `notes` go into the report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    annotated: Path | None = None
    hide: Hide | None = None
    test: TestSet | None = None
    hold_out: int = Field(default=0, ge=0)
    hold_out_seed: int = 0
    training_cases: int = Field(default=0, ge=0)
    arms: tuple[Arm, ...] = Field(default=tuple(Arm(arm=arm) for arm in ALL_ARMS), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1), min_length=1)
    folds: tuple[Fold, ...] = Field(default=(0,), min_length=1)
    epochs: tuple[int, ...] = Field(default=(250,), min_length=1)
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"
    configuration: str = "3d_fullres"
    configurations: dict[str, Configuration] = {}
    optimiser: Optimiser = "SGD"
    mirroring: bool = True
    tta: bool = True
    tolerance: float = Field(default=2.0, gt=0)
    notes: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @field_validator("dataset", mode="before")
    @classmethod
    def _id_or_name(cls, dataset: Any) -> Any:
        return str(dataset) if isinstance(dataset, int) else dataset

    @field_validator("configurations")
    @classmethod
    def _other_bases(cls, configurations: dict[str, Configuration]) -> dict[str, Configuration]:
        if own := [name for name, entry in configurations.items() if entry.base == name]:
            raise InputError(f"{own[0]} is its own `base`; give it another name")
        return configurations

    @field_validator("epochs")
    @classmethod
    def _known_lengths(cls, epochs: tuple[int, ...]) -> tuple[int, ...]:
        if unknown := [n for n in epochs if n not in EPOCHS]:
            raise InputError(f"expected some of {', '.join(map(str, EPOCHS))}, found {unknown}")
        return epochs

    @model_validator(mode="after")
    def _one_origin(self) -> Recipe:
        if self.annotated and self.hide:
            raise InputError("`annotated` and `hide`: expected one of them")
        if self.test and self.hold_out:
            raise InputError("`test` and `hold_out`: expected one of them")
        return self

    @model_validator(mode="after")
    def _distinct_arms(self) -> Recipe:
        folders = [Run(arm, 1, 0, 0).folder.casefold() for arm in self.arms]
        if twice := {arm.name for arm, folder in zip(self.arms, folders, strict=True) if folders.count(folder) > 1}:
            raise InputError(f"arms of one name: {', '.join(sorted(twice))}; give them a `name` each")
        return self

    def runs(self) -> list[Run]:
        """List all runs: every arm once before any is repeated."""
        return [
            Run(arm, n, seed, fold) for n, seed, fold, arm in product(self.epochs, self.seeds, self.folds, self.arms)
        ]
