"""What `measure_speed` measures, of which arms and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.inference.predictor import default_device
from nnunetv2_conemos.training.variants import STOCK

What = Literal["step", "tile", "case", "loader"]
LABELS_COUNTS = (1, 2, 5, 10, 20, 37, 104)
ARMS = (STOCK, "ConditionalFiLMTrainer", "LabelSetFiLMTrainer", "MultiTalentTrainer", "DoDNetTrainer")
SMALL_CASE, LARGE_CASE = (64, 96, 96), (200, 256, 256)  # voxels, after resampling; on a CPU and on a GPU


@dataclass(frozen=True)
class SpeedSettings:
    """Settings of `measure_speed`; raises ValueError for those that measure nothing.

    `arms`: trainers by name; stock nnU-Net is always the first. `labels_counts`: the numbers K of labels. `dataset`:
    plan as for this preprocessed dataset, and measure the loaders on it (None: plans for a generated volume, small ones
    unless the device is a GPU). `rounds`: repeats that the medians are taken over. `cap`: seconds after which a
    measurement is given up. `compiled`: train as nnU-Net does on a GPU, with torch.compile. `case_shape`: voxels
    (z, y, x) of the whole case after resampling, `step_size` that of its sliding window in patches. `profile`: write
    what the time of each arm is spent on. `features` of the first stage and `patch`: of the small plans for a CPU.
    """

    arms: Sequence[str] = ARMS
    labels_counts: Sequence[int] = LABELS_COUNTS
    what: Sequence[What] = get_args(What)
    device: str = field(default_factory=default_device)
    dataset: str | None = None
    configuration: str = "3d_fullres"
    plans: str = "nnUNetPlans"
    rounds: int = 5
    cap: float = 300.0
    compiled: bool = True
    case_shape: Sequence[int] | None = None
    profile: bool = False
    step_size: float = 0.5
    features: int = 8
    patch: Sequence[int] = (32, 32, 32)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.what if name not in get_args(What)]:
            raise InputError(f"what: expected {', '.join(get_args(What))}, found {', '.join(unknown)}.")
        if not self.labels_counts or min(self.labels_counts) < 1:
            raise InputError(f"labels_counts: expected numbers of 1 and more, found {list(self.labels_counts)}.")
        if self.rounds < 1 or self.cap <= 0:
            raise InputError(f"rounds and cap: expected 1 or more, found {self.rounds} rounds and a cap of {self.cap}.")
        if not 0 < self.step_size <= 1 or self.features < 1:
            raise InputError(
                "step_size and features: expected a number above 0 and up to 1, and 1 or more, found "
                f"{self.step_size:g} and {self.features}."
            )
        if self.case_shape is not None and (len(self.case_shape) != 3 or min(self.case_shape) < 16):
            raise InputError(f"case_shape: expected 3 numbers of 16 and more, found {list(self.case_shape)}.")

    @property
    def names(self) -> list[str]:
        """The arms, each once, stock nnU-Net first."""
        return list(dict.fromkeys([STOCK, *self.arms]))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole case after resampling."""
        return tuple(self.case_shape or (LARGE_CASE if self.device == "cuda" else SMALL_CASE))
