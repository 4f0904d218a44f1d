"""Cross-validation splits in which every label is annotated in every fold, as far as its cases go."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunetv2_conemos.datasets import write_json
from nnunetv2_conemos.sources import SourceTable


def stratified_split(table: SourceTable, folds: int = 5, seed: int = 12345) -> list[dict[str, list[str]]]:
    """Iterative stratification (Sechidis et al., ECML PKDD 2011) by annotated labels; nnU-Net's splits_final format.

    The rarest label is dealt out first, each of its cases to the fold that is furthest below its share. Unlabelled
    cases train in every fold. Raises ValueError when fewer annotated cases than folds exist.
    """
    annotated = [case for case in table.cases if table.known(case).any()]
    unlabelled = [case for case in table.cases if not table.known(case).any()]
    if len(annotated) < folds:
        raise ValueError(
            f"{len(annotated)} annotated cases cannot be split into {folds} folds. Write splits_final.json by hand."
        )
    rng = np.random.default_rng(seed)
    known = {annotated[i]: table.known(annotated[i]) for i in rng.permutation(len(annotated))}
    wanted = np.tile(sum(k.astype(float) for k in known.values()) / folds, (folds, 1))  # [folds, K]
    room = np.full(folds, len(annotated) / folds)
    validation: list[list[str]] = [[] for _ in range(folds)]
    while known:
        left = sum(k.astype(int) for k in known.values())
        label = int(np.where(left > 0, left, np.iinfo(int).max).argmin())
        for case in [case for case, k in known.items() if k[label]]:
            fold = max(range(folds), key=lambda f: (wanted[f, label], room[f], -f))
            validation[fold].append(case)
            wanted[fold] -= known.pop(case)
            room[fold] -= 1
    return [
        {"train": sorted((set(annotated) - set(cases)) | set(unlabelled)), "val": sorted(cases)} for cases in validation
    ]


def write_split(table: SourceTable, folder: Path) -> list[str]:
    """Write splits_final.json, which planning copies from a raw folder; where there are too few cases, say so."""
    try:
        write_json(folder / "splits_final.json", stratified_split(table))
    except ValueError as error:
        return [f"no splits_final.json: {error}"]
    return []
