"""Validation on annotated labels: counts per label, and nnU-Net's summary.json reduced to annotated pairs."""

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
from torch import distributed as dist

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.files import write_aside
from nnunetv2_conemos.losses.masked import counted_voxels
from nnunetv2_conemos.records import Truth

COUNTS = ("tp_hard", "fp_hard", "fn_hard")  # nnU-Net's names
ALL_LABELS = "summary_all_labels.json"  # nnU-Net's own file, kept beside ours
COUNTED = "counted"  # key that marks a reduced summary


def counts_of(
    output: Any, truth: Sequence[Truth] | Truth, table: SourceTable, exclusive: bool
) -> dict[str, np.ndarray]:
    """Count true positives, false positives and false negatives per label [K] in a network's output, at full size.

    `output` is the logits, or begins with them (the finest scale, or a record). With `exclusive`, labels compete.
    """
    finest = truth if isinstance(truth, Truth) else truth[0]
    logits = output if isinstance(output, Tensor) else output[0]
    if exclusive:
        logits = likeliest_alone(logits, (np.flatnonzero(~table.supervised()) + 1).tolist())
    counts = hard_counts(logits, finest, len(table.labels)).cpu().numpy()
    return dict(zip(COUNTS, counts, strict=True))


def likeliest_alone(logits: Float[Tensor, "B K *S"], never_annotated: Sequence[int]) -> Float[Tensor, "B K *S"]:
    """Return logits of which, at each voxel, only the most likely of the annotated labels can be positive."""
    own = logits.clone()
    own[:, [label - 1 for label in never_annotated]] = -torch.inf
    return torch.where(own == own.amax(1, keepdim=True), own, -torch.inf)


@torch.no_grad()
def hard_counts(logits: Float[Tensor, "B Q *S"], truth: Truth, num_labels: int) -> Float[Tensor, "3 K"]:
    """Count true positives, false positives and false negatives per label over a batch, in known pairs only."""
    counted = counted_voxels(truth)
    predicted, target = (logits > 0) & counted, truth.onehot() & counted
    space = tuple(range(2, logits.ndim))
    counts = [(predicted & target), (predicted & ~target), (~predicted & target)]
    sums = torch.stack([c.sum(space, dtype=torch.float32).flatten() for c in counts])
    per_label = sums.new_zeros(3, num_labels + 1)
    return per_label.index_add_(1, truth.labels.flatten(), sums)[:, 1:]


def anything_counted(val_outputs: Sequence[dict[str, Any]], device: torch.device, ddp: bool) -> bool:
    """Return whether any label was predicted or present in an epoch of validation, in any process."""
    seen = torch.tensor(float(sum(output[name].sum() for output in val_outputs for name in COUNTS)), device=device)
    if ddp:
        dist.all_reduce(seen)
    return seen.item() > 0


def repeat_last_dice(logger: Any, val_outputs: Sequence[dict[str, Any]], epoch: int, num_labels: int) -> None:
    """Log an epoch in which nothing was counted: the mean Dice is that of the previous epoch, or 0."""
    previous = logger.get_value("mean_fg_dice", step=None)
    logger.log("mean_fg_dice", previous[-1] if previous else 0.0, epoch)
    logger.log("dice_per_class_or_region", [float("nan")] * num_labels, epoch)
    logger.log("val_losses", np.mean([output["loss"] for output in val_outputs]), epoch)


def annotated_summary(summary_file: Path, table: SourceTable, ending: str) -> dict[str, Any]:
    """Rewrite a summary.json of nnU-Net so that only annotated (case, label) pairs count, and return it.

    nnU-Net scores every label in every case: a correct organ where it was not annotated counts as Dice 0. Means are
    nnU-Net's: over cases, then over the labels that have a value. `ending` is the dataset's `file_ending`.
    """
    original = summary_file.with_name(ALL_LABELS)
    if COUNTED not in load_summary_json(str(summary_file)):  # just written by nnU-Net
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
    """Average each metric over the values that are defined (NaN where none is)."""
    means = {}
    for name in metrics[0] if metrics else ():
        defined = [m[name] for m in metrics if m[name] is not None and not np.isnan(m[name])]
        means[name] = float(np.mean(defined)) if defined else float("nan")
    return means
