"""Cross-validation splits and random samples in which every label is annotated, as far as there are cases for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.files import write_json

Fold = dict[str, list[str]]  # of nnU-Net's splits_final.json: "train" and "val"


def stratified_split(
    table: SourceTable, folds: int = 5, seed: int = 12345, cases: Collection[str] | None = None
) -> list[Fold]:
    """Split cases (default: all) by iterative stratification (Sechidis et al., ECML PKDD 2011) of labels and domains.

    The rarest label or domain is distributed first, each of its cases to the fold that is furthest below its share.
    Unlabelled cases train in every fold. Where fewer cases than folds are annotated, tagged labels count as annotated.
    Raises ValueError where there are still fewer cases than folds.
    """
    known = {case: table.known(case) for case in (table.cases if cases is None else sorted(cases))}
    if sum(k.any() for k in known.values()) < folds:
        known = {case: k | table.tagged(case) for case, k in known.items()}
    annotated = [case for case, k in known.items() if k.any()]
    unlabelled = [case for case, k in known.items() if not k.any()]
    if len(annotated) < folds:
        raise InputError(
            f"{len(annotated)} annotated cases cannot be split into {folds} folds. Write splits_final.json by hand."
        )
    rng = np.random.default_rng(seed)
    traits = {case: np.append(known[case], domain_traits(table, case)) for case in rng.permutation(annotated).tolist()}
    wanted = np.tile(sum(t.astype(float) for t in traits.values()) / folds, (folds, 1))  # [folds, K + domains]
    room = np.full(folds, len(annotated) / folds)
    validation: list[list[str]] = [[] for _ in range(folds)]
    while traits:
        left = sum(t.astype(int) for t in traits.values())
        rarest = int(np.where(left > 0, left, np.iinfo(int).max).argmin())
        for case in [case for case, t in traits.items() if t[rarest]]:
            fold = max(range(folds), key=lambda f: (wanted[f, rarest], room[f], -f))
            validation[fold].append(case)
            wanted[fold] -= traits.pop(case)
            room[fold] -= 1
    return [
        {"train": sorted((set(annotated) - set(held)) | set(unlabelled)), "val": sorted(held)} for held in validation
    ]


def domain_traits(table: SourceTable, case: str) -> np.ndarray:
    """Return boolean [domains]: the one that a case comes from."""
    return np.array([table.domain_of(case) == domain for domain in table.domains], dtype=bool)


def stratified_draw(table: SourceTable, cases: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    """Sample `number` of these annotated cases (all, if there are fewer), with cases per label as equal as possible.

    The label with the fewest cases so far (of several, the rarest) gets the next one: a random case among those that
    are annotated for it and for most of the labels that have none yet.
    """
    shuffled = rng.permutation(sorted(cases)).tolist()
    known = np.array([table.known(case) for case in shuffled]).reshape(-1, len(table.labels))  # [cases, K]
    free = np.ones(len(shuffled), dtype=bool)
    for _ in range(number):
        drawn, left = known[~free].sum(0), known[free].sum(0)
        label = np.lexsort((left, np.where(left > 0, drawn, len(cases))))[0]
        gain = known[:, drawn == 0].sum(1)
        free[np.where(free & known[:, label], gain, -1).argmax()] = False
    return sorted(case for case, is_left in zip(shuffled, free, strict=True) if not is_left)


def write_split(table: SourceTable, folder: Path) -> list[str]:
    """Write splits_final.json, which planning copies from a raw folder; return a note if there are too few cases."""
    try:
        write_json(folder / "splits_final.json", stratified_split(table))
    except ValueError as error:
        return [f"no splits_final.json: {error}"]
    return []
