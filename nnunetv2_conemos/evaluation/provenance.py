"""Check what maps and scores stem from: predictions of a model of these labels, evaluations of the same references."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import LabelMaps, read_checked
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.text_files import read_object

LABELS, REFERENCES = "labels", "reference_maps"  # keys of evaluation.json
Labels = Mapping[str, Any]  # `labels` of a dataset.json


def require_predicted_labels(predictions: Path, dataset_file: Path, labels: Labels, table: SourceTable) -> str | None:
    """Raise SourceError where a model of other labels made the predictions; return a note where nobody knows.

    nnU-Net leaves the model's dataset.json beside them. It may lack labels that are not scored, and have an ignore
    label where the dataset has none, because that is never predicted.
    """
    beside = predictions / "dataset.json"
    if not beside.is_file():
        return (
            f"{predictions} holds no dataset.json: whether its maps have the labels of {dataset_file} is not checked."
        )
    if beside.samefile(dataset_file):
        return None
    theirs = read_checked(beside, LabelMaps)["labels"]
    wrong = different_labels(theirs, labels)
    unknown = sorted(values_of(theirs).keys() - values_of(labels).keys())
    scored = [name for name, known in zip(table.labels.names, table.supervised(table.cases), strict=True) if known]
    lacking = [name for name in scored if name not in theirs]
    if wrong or unknown or lacking:
        remedy = "Name the dataset that the model was trained on, or predict with a model of this one."
        if lacking and not (wrong or unknown):
            remedy = f"The model never predicts {shorten(lacking)}: name the labels to score with --annotated."
        raise SourceError(
            f"{beside}: expected the labels of {dataset_file}, found those of another model.\n"
            f"  expected: {json.dumps(labels)}\n  found: {json.dumps(theirs)}\n{remedy}"
        )
    return None


def different_labels(theirs: Labels, ours: Labels) -> list[str]:
    """Return the names that both have with other values."""
    mine, other = values_of(ours), values_of(theirs)
    wrong = [name for name in other if name in mine and other[name] != mine[name]]
    both = "ignore" in theirs and "ignore" in ours
    return [*wrong, *(["ignore"] if both and theirs["ignore"] != ours["ignore"] else [])]


def values_of(labels: Labels) -> dict[str, set[int]]:
    """Return the label-map values of each label or region, without background and the ignore label."""
    space = LabelSpace.from_dataset_json({"labels": labels})
    return {name: set(values) for name, values in zip(space.names, space.values, strict=True)}


def digests(references: Iterable[tuple[str, Path]]) -> dict[str, str]:
    """Return case -> hash of its reference map."""
    return {case: sha256(file.read_bytes()).hexdigest()[:16] for case, file in references}


def require_comparable(evaluations: Mapping[str, Path], metric: str) -> list[str]:
    """Raise SourceError where evaluation.json of several models tell of other labels, references or (NSD) tolerances.

    Return notes about those that do not tell.
    """
    facts = {name: read_object(file) for name, file in evaluations.items() if file.is_file()}
    telling = {name: content for name, content in facts.items() if LABELS in content and REFERENCES in content}
    for name, content in list(telling.items())[1:]:
        first = next(iter(telling))
        require_same_facts(telling[first], content, (str(evaluations[first]), str(evaluations[name])), metric)
    silent = [str(file) for name, file in evaluations.items() if name not in telling]
    return [f"Not checked, labels and references are not recorded: {shorten(silent)}."] if silent else []


def require_same_facts(ours: Mapping[str, Any], theirs: Mapping[str, Any], files: Sequence[str], metric: str) -> None:
    """Raise SourceError where two evaluations cannot be compared; see `require_comparable`."""
    mine, others = ours[REFERENCES], theirs[REFERENCES]
    differing = [case for case in mine if case in others and mine[case] != others[case]]
    found: list[tuple[str, Any, Any]] = []
    if different_labels(theirs[LABELS], ours[LABELS]) or ours[LABELS].get("ignore") != theirs[LABELS].get("ignore"):
        found.append(("labels", json.dumps(ours[LABELS]), json.dumps(theirs[LABELS])))
    if differing:
        found.append((f"reference maps of {shorten(differing)}", ours["reference"], theirs["reference"]))
    if metric == "nsd" and ours["tolerance_mm"] != theirs["tolerance_mm"]:
        found.append(("tolerances of the NSD", f"{ours['tolerance_mm']:g} mm", f"{theirs['tolerance_mm']:g} mm"))
    for what, here, there in found:
        raise SourceError(
            f"evaluations with different {what} cannot be compared.\n  {files[0]}: {here}\n  {files[1]}: {there}\n"
            "Evaluate all predictions in the same way (conemos evaluate ... --overwrite)."
        )


def labels_of_training(fold: Path) -> Labels | None:
    """Return the labels that nnU-Net noted in the debug.json of a trained fold; None where it noted none."""
    try:
        noted = ast.literal_eval(read_object(fold / "debug.json")["dataset_json"])["labels"]
    except (OSError, ValueError, SyntaxError, KeyError, TypeError):
        return None
    return noted if isinstance(noted, dict) else None
