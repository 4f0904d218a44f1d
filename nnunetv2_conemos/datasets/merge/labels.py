"""The labels of a merge: of one dataset under merged names, and of all datasets together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnunetv2_conemos.annotations.labels import BACKGROUND, IGNORE, LabelSpace
from nnunetv2_conemos.datasets.label_maps import NOTHING, Signature, label_entries, not_written, signatures, union
from nnunetv2_conemos.datasets.merge.sources import SourceDataset, SourceLabels
from nnunetv2_conemos.datasets.merge.spec import DatasetSpec, Recipe
from nnunetv2_conemos.errors import SourceError, shorten

Parts = dict[str, list[str]]  # merged name -> own labels that make it up


def parts_of(spec: DatasetSpec, labels: LabelSpace, name: str, recipe: Recipe) -> tuple[Parts, dict[str, str | None]]:
    """Return merged name -> own labels that make it up, and own name -> merged name (None: dropped).

    Two labels with the same new name become one. Raises SourceError for names that the dataset does not have.
    """
    where = f"dataset '{name}'"
    for own in (*spec.rename, *spec.drop, *(part for owns in spec.regions.values() for part in owns)):
        labels.index(own, where)
    renames, dropped = {**recipe.rename, **spec.rename}, {*recipe.drop, *spec.drop}

    def final(new: str) -> str:
        return f"{new}_{name}" if new in recipe.keep_apart else new

    renamed = {own: None if own in dropped else final(renames.get(own, own)) for own in labels.names}
    parts: Parts = {}
    for own, new in renamed.items():
        if new is not None:
            parts.setdefault(new, []).append(own)
    for region, owns in spec.regions.items():
        others = set(parts.get(final(region), ())) - set(owns)
        if others:
            raise SourceError(
                f"{where}: region '{region}' would hide the label {shorten(sorted(others))}, which has the same name "
                "and is not part of it. Give the region another name, or rename or drop the label."
            )
        parts[final(region)] = list(owns)
    reserved = parts.keys() & {BACKGROUND, IGNORE}
    if reserved:
        raise SourceError(f"{where}: a label cannot be called {shorten(sorted(reserved))}; nnU-Net reserves the name.")
    return parts, renamed


def source_labels(parts: Parts, renamed: dict[str, str | None], labels: LabelSpace) -> SourceLabels:
    """Return what the values of a dataset's label maps mean under merged names."""
    values = [[v for own in owns for v in labels.values[labels.names.index(own)]] for owns in parts.values()]
    every = {value: NOTHING for its_values in labels.values for value in its_values}
    return SourceLabels(every | signatures(list(parts), values), renamed, labels.ignore)


def require_used_names(recipe: Recipe, datasets: Sequence[SourceDataset]) -> None:
    """Raise SourceError for a label that a recipe names for all datasets and that none of them has."""
    own = {label for dataset in datasets for label in dataset.labels.renamed}
    merged = {label for dataset in datasets for label in dataset.labels.names}
    for option, names in (("rename", recipe.rename), ("drop", recipe.drop)):
        for label in names:
            if label not in own:
                raise SourceError(f"{option}: no dataset has a label '{label}' ({', '.join(sorted(own))}).")
    for label in recipe.keep_apart:
        if not any(f"{label}_{dataset.name}" in merged for dataset in datasets):
            raise SourceError(f"keep_apart: no dataset has a label '{label}' ({', '.join(sorted(own))}).")


@dataclass(frozen=True)
class UnifiedLabels:
    """The labels of the result.

    `entries` and `order` are `labels` and `regions_class_order` of its dataset.json (the order is empty in label mode);
    `values[i]` is the set of labels that the value i + 1 stands for.
    """

    entries: dict[str, int | list[int]]
    order: list[int]
    values: list[Signature]
    ignore: int | None

    @property
    def value_of(self) -> dict[Signature, int]:
        """Set of labels -> value."""
        return {signature: value for value, signature in enumerate(self.values, start=1)}

    @property
    def notes(self) -> list[str]:
        """What cannot be written as one value."""
        names = [name for name in self.entries if name not in (BACKGROUND, IGNORE)]
        return [
            f"a voxel of {' and '.join(sorted(lost))} cannot be written: the datasets disagree on what lies within "
            "what. Use --keep-apart for one of them."
            for lost in (not_written(names, self.order, dict(enumerate(self.values, 1))) if self.order else ())
        ]


def unify_labels(datasets: Sequence[SourceDataset]) -> UnifiedLabels:
    """Join the labels of all datasets by name; raises SourceError for two names of the same voxels."""
    names, values = union(dataset.labels.space for dataset in datasets)
    entries, order = label_entries(names, values)
    if all(dataset.labels.ignore is None for dataset in datasets):
        return UnifiedLabels(entries, order, values, None)
    ignore = len(values) + 1
    return UnifiedLabels({**entries, IGNORE: ignore}, order, values, ignore)
