"""The label map of nnU-Net, from the maps of one label after the other. Axis letters: **K** labels, ***S** space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager


class RunningMap:
    """A label map [*S] that logits of label after label, ascending, are added to; one map and one of logits are kept.

    Label mode: a voxel is the first label of those with the largest logit, background (0) being the first of all, as in
    numpy's argmax over nnU-Net's heads. Region mode: each region overwrites those before it where its probability is
    above one half.
    """

    def __init__(self, manager: LabelManager, shape: Sequence[int]):
        self._manager, self._order = manager, manager.regions_class_order or []
        few = len(manager.foreground_labels) < 255  # nnU-Net's rule
        self.values = np.zeros(tuple(shape), dtype=np.uint8 if few else np.uint16)
        self._best: np.ndarray | None = None

    def add(self, label: int, logits: np.ndarray) -> None:
        """Add the logits [*S] of a label (1..K)."""
        if self._manager.has_regions:
            inside = np.asarray(self._manager.apply_inference_nonlin(logits) > 0.5)
            self.values[inside] = self._order[label - 1]
            return
        wide = logits.astype(np.result_type(logits, np.float32))  # the same numbers, compared and selected faster
        if self._best is None:
            self._best = np.zeros_like(wide)
        self.values[wide > self._best] = label
        np.maximum(self._best, wide, out=self._best)
