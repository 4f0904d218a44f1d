"""nnU-Net's summary.json of a validation, reduced to what was annotated."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from nnunetv2.evaluation.evaluate_predictions import load_summary_json, save_summary_json
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from torch import Tensor

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.losses.masked import counted_voxels
from nnunetv2_conemos.records import Truth


def likeliest_alone(logits: Float[Tensor, "B K *S"], never_annotated: Sequence[int]) -> Float[Tensor, "B K *S"]:
    """Logits of labels that exclude each other: at each voxel, only the likeliest that was taught can be positive."""
    answers = logits.clone()
    answers[:, [label - 1 for label in never_annotated]] = -torch.inf
    return torch.where(answers == answers.amax(1, keepdim=True), answers, -torch.inf)


@torch.no_grad()
def hard_counts(logits: Float[Tensor, "B Q *S"], truth: Truth, num_labels: int) -> Float[Tensor, "3 K"]:
    """True positives, false positives and false negatives per label over a batch, counting known pairs only."""
    counted = counted_voxels(truth)
    predicted, target = (logits > 0) & counted, truth.onehot() & counted
    space = tuple(range(2, logits.ndim))
    counts = [(predicted & target), (predicted & ~target), (~predicted & target)]
    sums = torch.stack([c.sum(space, dtype=torch.float32).flatten() for c in counts])
    per_label = sums.new_zeros(3, num_labels + 1)
    return per_label.index_add_(1, truth.labels.flatten(), sums)[:, 1:]


ALL_LABELS = "summary_all_labels.json"  # nnU-Net's own file, kept beside ours
COUNTED = "counted"  # key that marks a reduced summary


def annotated_summary(summary_file: Path, table: SourceTable, ending: str) -> dict[str, Any]:
    """Rewrite a summary.json of nnU-Net so that only annotated (case, label) pairs count; returns it.

    nnU-Net scores every label in every case: a right organ where it was not annotated counts as Dice 0. Means are
    nnU-Net's: over cases, then over the labels that have a value. `ending` is the dataset's `file_ending`.
    """
    original = summary_file.with_name(ALL_LABELS)
    if COUNTED not in load_summary_json(str(summary_file)):  # fresh from nnU-Net
        shutil.copyfile(summary_file, original)
    full = load_summary_json(str(original))
    cases = [_annotated_only(entry, table, ending) for entry in full["metric_per_case"]]
    mean = {label: _mean([c["metrics"][label] for c in cases if label in c["metrics"]]) for label in full["mean"]}
    mean = {label: metrics for label, metrics in mean.items() if metrics}
    summary = {
        COUNTED: "annotated (case, label) pairs",
        "metric_per_case": cases,
        "mean": mean,
        "foreground_mean": _mean(list(mean.values())),
    }
    recursive_fix_for_json_export(summary)
    write_aside(summary_file, lambda file: save_summary_json(summary, str(file)))
    return summary


def _annotated_only(entry: dict[str, Any], table: SourceTable, ending: str) -> dict[str, Any]:
    case = Path(entry["prediction_file"]).name.removesuffix(ending)
    values = {vs for vs, known in zip(table.labels.values, table.known(case), strict=True) if known}
    metrics = {label: m for label, m in entry["metrics"].items() if tuple(np.atleast_1d(label).tolist()) in values}
    return {**entry, "metrics": metrics}


def _mean(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Per metric, the mean of the values that are defined (NaN where none is)."""
    means = {}
    for name in metrics[0] if metrics else ():
        defined = [m[name] for m in metrics if m[name] is not None and not np.isnan(m[name])]
        means[name] = float(np.mean(defined)) if defined else float("nan")
    return means
