"""Scores of one label in one case, and their means.

A table of scores is long, with one row per annotated (case, label): case, source, label, the METRICS and a status, and
the Dice of slices where it was measured.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from nnunetv2_conemos.errors import InputError, brief
from nnunetv2_conemos.text_files import read_text

METRICS = ["dice", "nsd", "hd95_mm"]
SLICE_DICE = "slice_dice"
SCORED, PREDICTION_EMPTY, REFERENCE_EMPTY, BOTH_EMPTY = "scored", "prediction empty", "reference empty", "both empty"
STATUS = {
    (True, True): SCORED,
    (True, False): PREDICTION_EMPTY,
    (False, True): REFERENCE_EMPTY,
    (False, False): BOTH_EMPTY,
}  # (the reference holds the label, the prediction holds it)
STATUSES = list(STATUS.values())
HD95_UNDEFINED = "hd95 undefined"
Mask = Bool[np.ndarray, "*S"]


def pair_scores(reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float | None) -> dict[str, Any]:
    """Measure Dice, NSD and HD95 (mm) of one label, NaN where undefined, with a status that says why."""
    status = STATUS[bool(reference.any()), bool(prediction.any())]
    if status == BOTH_EMPTY:
        return {"dice": np.nan, "nsd": np.nan, "hd95_mm": np.nan, "status": status}
    if status != SCORED:
        return {"dice": 0.0, "nsd": 0.0, "hd95_mm": np.nan, "status": status}
    dice = 2 * float(np.sum(reference & prediction)) / float(reference.sum() + prediction.sum())
    surface = (np.nan, np.nan) if tolerance is None else surface_scores(reference, prediction, spacing, tolerance)
    return {"dice": dice, "nsd": surface[0], "hd95_mm": surface[1], "status": status}


def slice_scores(reference: Mask, prediction: Mask, axis: int) -> dict[str, Any]:
    """Measure the mean Dice of the slices along `axis` that show the label in the reference, and count them.

    Slices without it are left out: an empty prediction would be right in each of them.
    """
    others = tuple(other for other in range(reference.ndim) if other != axis)
    size, found, both = (mask.sum(others) for mask in (reference, prediction, reference & prediction))
    there = size > 0
    dice = (2 * both[there] / (size + found)[there]).mean() if there.any() else np.nan
    return {SLICE_DICE: float(dice), "slices": int(there.sum())}


def read_named(file: Path, names: Sequence[str]) -> pd.DataFrame:
    """Read a CSV whose columns `names` are text, even where they look like numbers or missing values.

    Raises InputError that names the file where it is no table.
    """
    text = StringIO(read_text(file))
    try:
        return pd.read_csv(text, dtype=dict.fromkeys(names, str), keep_default_na=False, na_values=[""])
    except ValueError as error:  # pandas' own, for no columns, for a row that is too long, ...
        raise InputError(f"{file}: expected a table, found another text ({brief(error)}). Write it again.") from None


def of_present(scores: pd.DataFrame) -> pd.DataFrame:
    """Keep the pairs whose reference shows the label: in a comparison, an absent label counts for no model."""
    return scores.loc[~scores["status"].isin([REFERENCE_EMPTY, BOTH_EMPTY])]


def metrics_of(scores: pd.DataFrame) -> list[str]:
    """Return the metrics that a table of scores holds."""
    return [*METRICS, *([SLICE_DICE] if SLICE_DICE in scores else [])]


def surface_scores(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Measure the NSD at a tolerance in mm, and the HD95 in mm, of two masks [*S] that are not empty.

    NSD weighs surface elements by their area (on the subvoxel grid): with anisotropic voxels, counting them would
    favour the sides with small faces. HD95 is the larger of the two directed 95th percentiles.
    """
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice  # takes seconds to import

    y, y_pred = (torch.from_numpy(mask)[None, None] for mask in (reference, prediction))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)  # MONAI's own
        nsd = compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True)
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing)
    return nsd.item(), hd95.item()


def summarise(scores: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Average over cases: a row per label, in the order of `labels`, NaN without a value; with the pairs per status."""
    means = pd.DataFrame(scores.groupby("label")[metrics_of(scores)].mean(), index=list(labels))
    counts = pd.DataFrame(pd.crosstab(scores["label"], scores["status"]), index=list(labels), columns=STATUSES)
    counts = counts.fillna(0).astype(int)
    counts[HD95_UNDEFINED] = counts[PREDICTION_EMPTY] + counts[REFERENCE_EMPTY]
    return means.join(counts)


def summary_json(scores: pd.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    """Return the means over labels, per label, and the same per source, as JSON; None where there is no value."""
    sources = {str(name): _plain(rows, labels) for name, rows in scores.groupby("source", sort=False)}
    return {**_plain(scores, labels), "per_source": sources}


def _plain(scores: pd.DataFrame, labels: Sequence[str]) -> dict[str, Any]:
    summary = summarise(scores, labels)
    mean, per_label = (
        json.loads(str(frame.to_json(orient="index", double_precision=15)))
        for frame in (summary[metrics_of(summary)].mean().to_frame("mean").T, summary)
    )
    return {"cases": scores["case"].nunique(), **mean, "per_label": per_label}
