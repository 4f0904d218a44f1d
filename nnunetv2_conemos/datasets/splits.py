"""Splits: read and checked, or made so that every label is annotated in every fold, as far as there are cases for it.

The cases of a patient always belong together (see `patient` of `Source`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.split_problems import PARTS, problems_of
from nnunetv2_conemos.errors import InputError, SourceError
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.text_files import read_shared_json

SPLITS = "splits_final.json"
FORM = '[{"train": ["CASE", ...], "val": ["CASE", ...]}, ...]'
SHOWN = 8  # problems of a file that a message lists
Fold = dict[str, list[str]]  # of nnU-Net's splits_final.json: "train" and "val"


def read_splits(file: Path, table: SourceTable) -> list[Fold]:
    """Read a splits_final.json; raises SourceError that names file, fold, part, case and the nearest case."""
    try:
        content = read_shared_json(file)
    except InputError as error:
        raise SourceError(f"{error} Expected {FORM}.") from None
    problems = list(problems_of(content, table))
    if problems:
        more = f" And {len(problems) - SHOWN} more." if len(problems) > SHOWN else ""
        raise SourceError(
            f"{file}: {' '.join(problems[:SHOWN])}{more} Correct the file, which looks like {FORM}, cases without "
            "channel and file ending; or delete it, and training writes a new one."
        )
    return content


def require_same_splits(raw: Path, preprocessed: Path, table: SourceTable) -> None:
    """Raise SourceError where the folds of a raw folder are not those of the preprocessed one, which training uses.

    Further folds of the latter are allowed, as nnU-Net does when it plans. Raises what `read_splits` does for either.
    """
    if not raw.is_file():
        return
    if not preprocessed.is_file():
        raise SourceError(
            f"{raw} was written after planning, so training would not use it: there is no {preprocessed}. Copy it "
            "there."
        )
    files = (raw, preprocessed)
    ours, theirs = ([{part: set(fold[part]) for part in PARTS} for fold in read_splits(f, table)] for f in files)
    for number, fold in enumerate(ours):
        if fold != (theirs[number] if number < len(theirs) else None):
            raise SourceError(
                f"fold {number} of {raw} differs from that of {preprocessed}, which training uses. Copy the right file "
                "over the other."
            )


def stratified_split(
    table: SourceTable, folds: int = 5, seed: int = 12345, cases: Collection[str] | None = None
) -> list[Fold]:
    """Split cases (default: all) so that labels and domains are spread over the folds, and no patient is taken apart.

    Unlabelled cases train in every fold in which their patient does not validate. Where fewer patients than folds are
    annotated, tagged labels count as annotated. Raises ValueError where there are still fewer.
    """
    known = {case: table.known(case) for case in (table.cases if cases is None else sorted(cases))}
    if len(by_patient(table, known)) < folds:
        known = {case: k | table.tagged(case) for case, k in known.items()}
    patients = by_patient(table, known)
    if len(patients) < folds:
        of_patients = f" of {len(patients)} patients, each in one fold," if table.patients else ""
        raise InputError(
            f"{sum(map(len, patients.values()))} annotated cases{of_patients} cannot be split into {folds} folds. "
            "Write splits_final.json by hand."
        )
    traits = {case: np.append(k, domain_traits(table, case)).astype(int) for case, k in known.items()}
    order = np.random.default_rng(seed).permutation(list(patients)).tolist()
    order.sort(key=lambda patient: -len(patients[patient]))
    counts = {patient: np.sum([traits[case] for case in patients[patient]], axis=0) for patient in order}
    held = distribute(counts, {patient: len(own) for patient, own in patients.items()}, folds)
    return [
        {
            "train": [case for case in known if table.patient_of(case) not in those],
            "val": sorted(case for patient in those for case in patients[patient]),
        }
        for those in held
    ]


def by_patient(table: SourceTable, known: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Return patient -> the cases, of those in `known` (case -> boolean [K]), that are annotated for something."""
    patients: dict[str, list[str]] = {}
    for case, labels in known.items():
        if labels.any():
            patients.setdefault(table.patient_of(case), []).append(case)
    return patients


def distribute(counts: Mapping[str, np.ndarray], sizes: Mapping[str, int], folds: int) -> list[set[str]]:
    """Distribute patients over folds by iterative stratification (Sechidis et al., ECML PKDD 2011).

    `counts`: patient -> cases with each label and domain, [K + domains]; `sizes`: patient -> all cases. The rarest
    label or domain is distributed first, each of its patients to the fold that is furthest below its share.
    """
    counts = dict(counts)
    wanted = np.tile(np.sum(list(counts.values()), axis=0) / folds, (folds, 1))  # [folds, K + domains]
    room = np.full(folds, sum(sizes.values()) / folds)
    held: list[set[str]] = [set() for _ in range(folds)]
    while counts:
        left = np.sum(list(counts.values()), axis=0)
        rarest = int(np.where(left > 0, left, np.iinfo(int).max).argmin())
        for patient in [patient for patient, n in counts.items() if n[rarest]]:
            fold = max(range(folds), key=lambda f: (wanted[f, rarest], room[f], -f))
            held[fold].add(patient)
            wanted[fold] -= counts.pop(patient)
            room[fold] -= sizes[patient]
    return held


def domain_traits(table: SourceTable, case: str) -> np.ndarray:
    """Return boolean [domains]: the one that a case comes from."""
    return np.array([table.domain_of(case) == domain for domain in table.domains], dtype=bool)


def stratified_draw(
    table: SourceTable, cases: Sequence[str], number: int, rng: np.random.Generator, spread: bool = True
) -> list[str]:
    """Sample `number` of these annotated cases (all, if there are fewer), with cases per label as equal as possible.

    The label with the fewest cases so far (of several, the rarest) gets the next one: a random case among those that
    are annotated for it and for most of the labels that have none yet; of these, one of a new patient if `spread` is
    set, else of a patient drawn before.
    """
    shuffled = rng.permutation(sorted(cases)).tolist()
    known = np.array([table.known(case) for case in shuffled]).reshape(-1, len(table.labels))  # [cases, K]
    patients = np.array([table.patient_of(case) for case in shuffled])
    free = np.ones(len(shuffled), dtype=bool)
    for _ in range(number):
        drawn, left = known[~free].sum(0), known[free].sum(0)
        label = np.lexsort((left, np.where(left > 0, drawn, len(cases))))[0]
        gain = 2 * known[:, drawn == 0].sum(1) + (np.isin(patients, patients[~free]) != spread)
        free[np.where(free & known[:, label], gain, -1).argmax()] = False
    return sorted(case for case, is_left in zip(shuffled, free, strict=True) if not is_left)


class Parts(NamedTuple):
    """The cases of a fold, and those that were meant to validate but cannot: moved to training, or left out."""

    train: list[str]
    val: list[str]
    moved: list[str]
    left_out: list[str]


def only_training(fold: Fold, can_validate: Callable[[str], bool], patient_of: Callable[[str], str]) -> Parts:
    """Move the validation cases that cannot validate to training, unless another case of their patient validates.

    The latter are in no part of the fold then.
    """
    val = [case for case in fold["val"] if can_validate(case)]
    validating = {patient_of(case) for case in val}
    others = [case for case in fold["val"] if not can_validate(case)]
    moved = [case for case in others if patient_of(case) not in validating]
    train = [*fold["train"], *(case for case in moved if case not in fold["train"])]
    return Parts(train, val, moved, [case for case in others if case not in {*moved, *train}])


def write_split(table: SourceTable, folder: Path) -> list[str]:
    """Write splits_final.json, which planning copies from a raw folder; return a note if there are too few cases."""
    try:
        write_json(folder / SPLITS, stratified_split(table))
    except ValueError as error:
        return [f"no splits_final.json: {error}"]
    return []
