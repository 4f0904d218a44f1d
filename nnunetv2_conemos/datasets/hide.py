"""`conemos hide`: a partially labelled copy of a completely labelled dataset, for honest experiments.

The complete maps stay beside it, in `labelsTr_complete`, as the truth to test against.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import Annotated
from nnunetv2_conemos.datasets.folders import require_new_dataset
from nnunetv2_conemos.datasets.partial_copy import hidden_copy, read_original, written
from nnunetv2_conemos.datasets.splits import write_split
from nnunetv2_conemos.errors import SourceError


def dealt_labels(cases: Sequence[str], labels: LabelSpace, per_case: int, rng: np.random.Generator) -> Annotated:
    """Each case keeps `per_case` labels, and each label is kept equally often (give or take one case)."""
    if not 1 <= per_case <= len(labels):
        raise ValueError(f"--per-case {per_case}: expected 1 to {len(labels)} labels ({', '.join(labels.names)}).")
    used = np.zeros(len(labels))
    annotated = {}
    for case in rng.permutation(cases):
        kept = np.lexsort((rng.random(len(labels)), used))[:per_case]
        used[kept] += 1
        annotated[str(case)] = [labels.names[k] for k in sorted(kept)]
    return annotated


def dealt_groups(cases: Sequence[str], groups: Sequence[list[str]], rng: np.random.Generator) -> Annotated:
    """Cases are dealt out evenly to groups, each annotated for its labels."""
    return {str(case): groups[place % len(groups)] for place, case in enumerate(rng.permutation(cases))}


def thinned_labels(cases: Sequence[str], labels: LabelSpace, fraction: float, rng: np.random.Generator) -> Annotated:
    """Each label stays annotated in this fraction of the cases, drawn for each label anew."""
    number = round(fraction * len(cases))
    keepers = {name: set(rng.permutation(cases)[:number].tolist()) for name in labels.names}
    return {case: [name for name in labels.names if case in keepers[name]] for case in cases}


def read_groups(file: Path, labels: LabelSpace) -> list[list[str]]:
    """JSON `{"group": ["label", ...], ...}`; raises SourceError for a label that does not exist."""
    if not file.is_file():
        raise FileNotFoundError(f"--groups: there is no file {file}.")
    try:
        groups = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"--groups {file}: not valid JSON ({error}).") from None
    lists = groups.values() if isinstance(groups, dict) else ()
    if not lists or not all(isinstance(ns, list) and all(isinstance(n, str) for n in ns) for ns in lists):
        raise ValueError(f'--groups {file}: expected {{"group": ["label", ...], ...}}, found {str(groups)[:80]}.')
    for group, names in groups.items():
        for name in names:
            labels.index(name, f"--groups {file}, '{group}'")
    return list(groups.values())


def scheme(args: argparse.Namespace, cases: Sequence[str], labels: LabelSpace) -> Annotated:
    """Case -> labels that stay, as the command line asks; `--unlabelled` cases keep none."""
    rng = np.random.default_rng(args.seed)
    for option, value in (("fraction", args.fraction), ("unlabelled", args.unlabelled)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"--{option} {value:g}: expected a number from 0 to 1.")
    shuffled = rng.permutation(sorted(cases)).tolist()
    empty = round((args.unlabelled or 0) * len(shuffled))
    unlabelled, rest = shuffled[:empty], sorted(shuffled[empty:])
    if args.per_case is not None:
        kept = dealt_labels(rest, labels, args.per_case, rng)
    elif args.groups is not None:
        kept = dealt_groups(rest, read_groups(args.groups, labels), rng)
    elif args.fraction is not None:
        kept = thinned_labels(rest, labels, args.fraction, rng)
    elif empty:
        kept = {case: list(labels.names) for case in rest}
    else:
        raise ValueError("say what to hide: --per-case, --groups, --fraction or --unlabelled.")
    return {**kept, **{case: [] for case in unlabelled}}


def hide(raw: Path, target: Path, args: argparse.Namespace) -> tuple[SourceTable, list[str]]:
    """Write the partially labelled copy, whole or not at all; returns who keeps what, and notes."""
    require_new_dataset(target, args.overwrite)
    original = read_original(raw)
    if not original.table.is_complete:
        raise SourceError(f"{raw} is partially labelled already, by its `sources`. Hide labels of a complete dataset.")
    kept = scheme(args, list(original.files), original.table.labels)
    copy = hidden_copy(original, kept, args.tags, args.processes)
    with written(copy, target, args.images, args.processes, args.overwrite) as folder:
        notes = write_split(copy.table, folder)
    return copy.table, notes
