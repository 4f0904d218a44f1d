"""Labels that leave early: at prediction, a label that is absent from a tile is given up after a coarse decoder stage.

Deep supervision trains logits at every resolution. Where the highest coarse logit of a label stays below a bound, its
row leaves the batch and the finer stages, which cost most, are not computed for it.

Axis letters: **B** sample, **M** input channel, **K** labels, **A** output labels, **L** decoder levels but the last,
coarse to fine, **N** rows (labels of one image), **E** length of the code, **F** features, ***S** space.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnunetv2_conemos.networks.film_unet import FiLMUNet, multi_hot
from nnunetv2_conemos.networks.heads import ABSENT, chosen_channels
from nnunetv2_conemos.networks.planned import UNetState, num_stages, repeat_samples
from nnunetv2_conemos.networks.spec import NetworkSpec

BOUNDS = "absence_bounds"  # in the weights of a checkpoint
NEVER = -torch.inf  # the bound of a label that never leaves
NO_BOUNDS = (
    "a fold of this model has no bounds below which a label is absent: it computes every label in every tile. Its "
    "final validation chooses them: nnUNetv2_train ... --val."
)

uncompiled: Any = torch.compiler.disable  # which labels leave is known only as it runs


class Rows(NamedTuple):
    """Labels (1..K) of one image on their way through the network, with their places among the output labels.

    `image` are the pooled bottleneck features; these and the skips have one row for each label, or one for all.
    """

    labels: Int[Tensor, " N"]
    places: Int[Tensor, " N"]
    code: Float[Tensor, "N E"]
    image: Tensor | None
    state: UNetState

    def taken(self, rows: Int[Tensor, " n"]) -> Rows:
        """Return some of the rows."""
        features, skips, logits = self.state
        state = UNetState(features[rows], tuple(_of_rows(skip, rows) for skip in skips), logits)
        image = None if self.image is None else _of_rows(self.image, rows)
        return Rows(self.labels[rows], self.places[rows], self.code[rows], image, state)


def _of_rows(x: Tensor, rows: Tensor) -> Tensor:
    return x if len(x) == 1 else x[rows]


class EarlyLeavingUNet(FiLMUNet):
    """A planned U-Net whose labels, predicted one at a time, may leave early.

    `absence_bounds` [L,K] are part of the weights once the final validation has chosen them. `maxima`: a list to which
    every prediction of a tile adds the highest coarse logits [L,K] (NaN where there are none), while no label leaves.
    """

    absence_bounds: Tensor
    labels_at_once: ClassVar[int]  # rows of a batch; bounds the memory of the network whatever K is

    def __init__(self, spec: NetworkSpec, num_outputs: int):
        super().__init__(spec, num_outputs)
        self.leaves_early = False
        self.maxima: list[Tensor] | None = None
        self.register_buffer(BOUNDS, torch.full((len(self.decoder.stages) - 1, self.num_labels), NEVER))

    @abstractmethod
    def every_label(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        """Return the logits of the output labels, all of them computed to the end."""

    def leave_early(self) -> None:
        if not self.pass_per_label:
            return super().leave_early()
        self.leaves_early = True
        return None

    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        levels = self._checked_levels()
        if not levels:
            return self.every_label(image)
        images = [self._level_by_level(one, levels) for one in image.split(1)]
        return images[0] if len(images) == 1 else torch.cat(images)

    @property
    def levels_to_leave(self) -> range:
        """The levels after which labels may leave: those whose features depend on the label."""
        first = max(0, self.first_modulated_stage - len(self.encoder.stages))
        return range(first, len(self.absence_bounds)) if self.pass_per_label else range(0)

    def _checked_levels(self) -> list[int]:
        """Return the levels after which the logits of this prediction are looked at."""
        if self.maxima is not None:
            return list(self.levels_to_leave)
        if not self.leaves_early:
            return []
        bounded = self.absence_bounds.isfinite().any(1).tolist()
        return [level for level in self.levels_to_leave if bounded[level]]

    @uncompiled
    def _level_by_level(self, image: Float[Tensor, "1 M *S"], levels: list[int]) -> Float[Tensor, "1 A *S"]:
        """Compute one image: each level for the rows that are left, in batches, the finer ones as soon as one is full.

        Less than two batches of rows exist at any level.
        """
        encoder, first = len(self.encoder.stages), self._first_conditioned()
        ends = [first, *(encoder + level + 1 for level in levels), num_stages(self)]
        sizes = [self._rows_at(end) for end in ends[1:]]
        seen = image.new_full(self.absence_bounds.shape, torch.nan)
        groups = self._all_rows(image, sizes[0])
        for level, stages, size in zip(levels, pairwise(ends[:-1]), sizes[1:], strict=True):
            groups = self._those_left(groups, range(*stages), level, seen)
            if first >= encoder:  # else each row holds skips of its own: joining batches would hold more of them
                groups = joined(groups, size)
        logits = image.new_full((1, len(self.output_labels), *image.shape[2:]), ABSENT)
        for rows in groups:
            done = self._advance(rows, range(ends[-2], ends[-1]))
            logits = logits.to(done.state.logits[-1].dtype)
            logits[:, done.places] = _own_channel(done.state.logits[-1], done.labels)
        if self.maxima is not None:
            self.maxima.append(seen)
        return logits

    def _rows_at(self, end: int) -> int:
        """Return the size of a batch in the stages before `end`: twice as many rows for each level that is coarser.

        A row of a coarser level takes a quarter of the memory (in 2D, half). Where rows hold skips of their own, and
        while maxima are noted, batches are those of `every_label`.
        """
        if self.maxima is not None or self._first_conditioned() < len(self.encoder.stages):
            return self.labels_at_once
        return self.labels_at_once << num_stages(self) - end

    def _all_rows(self, image: Float[Tensor, "1 M *S"], size: int) -> Iterator[Rows]:
        """Yield the rows of all output labels, in batches, after the shared stages."""
        shared, (queried,) = self.shared(image), self.output_queries(image)
        pooled, numbers = self.condition.image, torch.arange(len(queried), device=image.device)
        for labels, places in zip(queried.split(size), numbers.split(size), strict=True):
            code = self.embed(multi_hot(labels[:, None], self.num_labels).to(next(self.embed.parameters()).dtype))
            state = shared._replace(features=repeat_samples(shared.features, len(labels)))
            yield Rows(labels, places, code, pooled, state)

    def _advance(self, rows: Rows, stages: range) -> Rows:
        self.condition.code, self.condition.image = rows.code, rows.image
        state = self._run(rows.state, stages)
        return rows._replace(state=state, image=self.condition.image)

    def _those_left(self, groups: Iterable[Rows], stages: range, level: int, seen: Tensor) -> Iterator[Rows]:
        """Yield the rows whose highest logit at a level reaches the bound of their label, and note that logit."""
        for before in groups:
            rows = self._advance(before, stages)
            self.condition.code, self.condition.image = rows.code, rows.image
            coarse = _own_channel(self.decoder.seg_layers[level](rows.state.features), rows.labels)
            highest = coarse.flatten(2).amax(2)[0].float()
            if self.maxima is not None:
                seen[level, rows.labels - 1] = highest.to(seen.dtype)
                yield rows
                continue
            left = (~(highest < self.absence_bounds[level, rows.labels - 1])).nonzero().flatten()
            if len(left):
                yield rows if len(left) == len(rows.labels) else rows.taken(left)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.absence_bounds.isfinite().any():
            del destination[prefix + BOUNDS]  # weights without bounds are what they always were

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if prefix + BOUNDS not in state_dict:
            if self.leaves_early:
                warnings.warn(NO_BOUNDS, stacklevel=2)
            state_dict = {**state_dict, prefix + BOUNDS: torch.full_like(self.absence_bounds, NEVER)}
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _own_channel(logits: Float[Tensor, "N O *S"], labels: Int[Tensor, " N"]) -> Float[Tensor, "1 N *S"]:
    """Return the logits of the label of each row, of networks with one output or with one for each label."""
    return (logits if logits.shape[1] == 1 else chosen_channels(logits, labels[:, None])).movedim(1, 0)


def joined(groups: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Join or divide rows of one image, with skips in common, to batches of `size`; the last may be smaller."""
    waiting: list[Rows] = []
    for group in groups:
        waiting.append(group)
        if sum(len(rows.labels) for rows in waiting) >= size:
            *full, rest = _divided(_one(waiting), size)
            yield from full
            waiting = [rest]
            if len(rest.labels) == size:
                yield rest
                waiting = []
    if waiting:
        yield _one(waiting)


def _divided(rows: Rows, size: int) -> list[Rows]:
    numbers = torch.arange(len(rows.labels), device=rows.labels.device).split(size)
    return [rows] if len(numbers) == 1 else [rows.taken(some) for some in numbers]


def _one(groups: list[Rows]) -> Rows:
    if len(groups) == 1:
        return groups[0]
    labels, places, code = (torch.cat(parts) for parts in zip(*(rows[:3] for rows in groups), strict=True))
    features = torch.cat([rows.state.features for rows in groups])
    return Rows(labels, places, code, groups[0].image, groups[0].state._replace(features=features))
