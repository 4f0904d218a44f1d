"""Make a partially labelled copy of a completely labelled dataset, for experiments with known ground truth.

The complete maps stay in the copy, in `labelsTr_complete`, as the ground truth to test against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import Annotated
from nnunetv2_conemos.annotations.tags import Axis
from nnunetv2_conemos.datasets.folders import named_or_path, new_dataset_folder, require_new_dataset
from nnunetv2_conemos.datasets.partial_copy import plan_copy, read_original, write_copy
from nnunetv2_conemos.datasets.splits import write_split
from nnunetv2_conemos.datasets.writer import Images
from nnunetv2_conemos.errors import InputError, SourceError, shorten
from nnunetv2_conemos.text_files import read_json

Groups = Mapping[str, list[str]]  # name -> labels that its cases stay annotated for


class HideReport(NamedTuple):
    """Result of `hide`: the raw folder written, which labels are annotated in which case, and notes."""

    folder: Path
    table: SourceTable
    notes: list[str]


def hide(
    dataset: str | int | Path,
    output: str | Path,
    *,
    per_case: int | None = None,
    groups: Groups | Path | None = None,
    fraction: float | None = None,
    unlabelled: float | None = None,
    tags: Axis | None = None,
    seed: int = 0,
    images: Images = "reference",
    processes: int = 1,
    overwrite: bool = False,
) -> HideReport:
    """Write a copy of a completely labelled raw dataset in which labels are hidden; it appears whole or not at all.

    Args:
        dataset: id, name or path of the raw dataset.
        output: name or path of the new one, `Dataset100_Name`.
        per_case: each case keeps this many labels, and each label is kept equally often.
        groups: cases are divided evenly among these groups, given here or in a JSON file.
        fraction: each label stays annotated in this fraction of the cases. At most one of these three may be given.
        unlabelled: this fraction of the cases keeps no label.
        tags: hidden labels stay known as image tags: the slices along this axis that show them.
        seed: of the random choice.
        images: how images are kept.
        processes: how many read and write cases; more than one requires a script with `if __name__ == "__main__":`.
        overwrite: replace an existing dataset of that name.

    Raises ValueError for options that do not fit the dataset, SourceError for a dataset that is partially labelled
    already, OSError for files that are missing, cannot be read, or exist.
    """
    raw, target = named_or_path(dataset), new_dataset_folder(output)
    require_new_dataset(target, overwrite)
    original = read_original(raw)
    if not original.table.is_complete:
        raise SourceError(f"{raw} is already partially labelled, by its `sources`. Hide labels of a complete dataset.")
    labels, rng = original.table.labels, np.random.default_rng(seed)
    bare, others = draw_unlabelled(list(original.files), unlabelled, rng)
    if not bare and per_case is None and groups is None and fraction is None:
        raise InputError("nothing to hide: pass --per-case, --groups, --fraction or --unlabelled.")
    kept = keep_labels(others, labels, per_case, groups, fraction, rng)
    copy = plan_copy(original, {**kept, **{case: [] for case in bare}}, tags, processes)
    with write_copy(copy, target, images, processes, overwrite) as folder:
        notes = write_split(copy.table, folder)
    if never_annotated := copy.table.never_annotated():
        notes.append(f"annotated in no case: {shorten(never_annotated)}.")
    return HideReport(target, copy.table, notes)


def draw_unlabelled(cases: Sequence[str], share: float | None, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Choose this share of the cases at random; return them and, sorted, all others."""
    require_share("unlabelled", share)
    shuffled = rng.permutation(sorted(cases)).tolist()
    number = round((share or 0) * len(shuffled))
    return shuffled[:number], sorted(shuffled[number:])


def require_share(option: str, value: float | None) -> None:
    """Raise ValueError for a number that is not a share of the cases."""
    if value is not None and not 0 <= value <= 1:
        raise InputError(f"--{option} {value:g}: expected a number from 0 to 1.")


def keep_labels(
    cases: Sequence[str],
    labels: LabelSpace,
    per_case: int | None,
    groups: Groups | Path | None,
    fraction: float | None,
    rng: np.random.Generator,
) -> Annotated:
    """Choose the labels that each case keeps, by one of the three schemes of `hide`, or all of them."""
    if [per_case, groups, fraction].count(None) < 2:
        raise InputError("expected one of --per-case, --groups and --fraction, found several.")
    if per_case is not None:
        return deal_labels(cases, labels, per_case, rng)
    if groups is not None:
        return deal_groups(cases, checked_groups(groups, labels), rng)
    if fraction is not None:
        return thin_out_labels(cases, labels, fraction, rng)
    return {case: list(labels.names) for case in cases}


def deal_labels(cases: Sequence[str], labels: LabelSpace, per_case: int, rng: np.random.Generator) -> Annotated:
    """Keep `per_case` labels in each case, and each label equally often (give or take one case)."""
    if not 1 <= per_case <= len(labels):
        raise InputError(f"--per-case {per_case}: expected 1 to {len(labels)} labels ({', '.join(labels.names)}).")
    used = np.zeros(len(labels))
    annotated = {}
    for case in rng.permutation(cases):
        kept = np.lexsort((rng.random(len(labels)), used))[:per_case]
        used[kept] += 1
        annotated[str(case)] = [labels.names[k] for k in sorted(kept)]
    return annotated


def deal_groups(cases: Sequence[str], groups: Groups, rng: np.random.Generator) -> Annotated:
    """Divide cases evenly among groups; each case keeps the labels of its group."""
    labels = list(groups.values())
    return {str(case): labels[place % len(labels)] for place, case in enumerate(rng.permutation(cases))}


def thin_out_labels(cases: Sequence[str], labels: LabelSpace, fraction: float, rng: np.random.Generator) -> Annotated:
    """Keep each label in this fraction of the cases, sampled anew for each label."""
    require_share("fraction", fraction)
    number = round(fraction * len(cases))
    keepers = {name: set(rng.permutation(cases)[:number].tolist()) for name in labels.names}
    return {case: [name for name in labels.names if case in keepers[name]] for case in cases}


def checked_groups(given: Groups | Path, labels: LabelSpace) -> Groups:
    """Return groups, read from a JSON file if need be; raises SourceError for a label that the dataset lacks."""
    where = f"--groups {given}" if isinstance(given, Path) else "--groups"
    groups: Any = read_json(given, where) if isinstance(given, Path) else given
    lists = groups.values() if isinstance(groups, Mapping) else ()
    if not lists or not all(isinstance(ns, list) and all(isinstance(n, str) for n in ns) for ns in lists):
        raise InputError(f'{where}: expected {{"group": ["label", ...], ...}}, found {str(groups)[:80]}.')
    for group, names in groups.items():
        for name in names:
            labels.index(name, f"{where}, '{group}'")
    return groups
