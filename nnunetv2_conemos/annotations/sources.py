"""Who annotated what: the `sources` of a dataset.json as one table that all other modules query.

Axis letters: **K** labels (columns of `known`). Column k-1 belongs to the k-th foreground label id in label mode and to
the k-th entry of nnU-Net's `foreground_regions` in region mode, so it always matches nnU-Net's output heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from nnunetv2_conemos.annotations.entries import (
    Source,
    check_contradictions,
    match_cases,
    parse_sources,
    patients_of,
)
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.tags import Axis, Present, Tags, check_tags_fit, parse_tags
from nnunetv2_conemos.errors import SourceError

EVERYTHING = "all cases"  # name of the implied source of a dataset without `sources`


class SourceTable:
    """The labels that are known in each case: every case has exactly one source. Build it with `from_dataset_json`."""

    def __init__(
        self,
        labels: LabelSpace,
        sources: Mapping[str, Source],
        source_of: Mapping[str, str],
        tags: Tags = Tags(),  # noqa: B008 (frozen)
        patients: Mapping[str, str] = MappingProxyType({}),
    ):
        self.labels = labels
        self.sources, self._source_of = dict(sources), dict(source_of)
        self._with_cases = set(source_of.values())
        self._tags = tags
        self.patients = dict(patients)  # case -> patient, where the source of a case declares one
        self._known = {name: self._columns(name, "annotated") for name in sources}
        self._tagged = {name: self._columns(name, "tagged") for name in sources}
        self.largest_set = max(int(known.sum()) for known in self._known.values())
        check_contradictions(self.sources)

    def _columns(self, source: str, key: str) -> np.ndarray:
        """Return boolean [K]: the labels that a source names under a key."""
        columns = [self.labels.index(name, f"source '{source}', {key}") for name in getattr(self.sources[source], key)]
        return np.isin(np.arange(len(self.labels)), columns)

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any], cases: Iterable[str]) -> SourceTable:
        """Build the table from a dataset.json and the identifiers of its training cases.

        A dataset.json without `sources` is annotated for everything. Raises SourceError for wrong types, unknown
        labels, cases in no source or in several, and globs that match no case.
        """
        cases = sorted(cases)
        labels = LabelSpace.from_dataset_json(dataset_json)
        if "sources" not in dataset_json:
            if "tags" in dataset_json:
                raise SourceError("found `tags` without `sources`. Declare which labels of which cases are `tagged`.")
            everything = Source(cases=("*",), annotated=labels.names)
            return cls(labels, {EVERYTHING: everything}, dict.fromkeys(cases, EVERYTHING))
        sources, tags = parse_sources(dataset_json["sources"]), parse_tags(dataset_json.get("tags", {}))
        source_of = match_cases(sources, cases)
        table = cls(labels, sources, source_of, tags, patients_of(sources, source_of))
        check_tags_fit(tags, {case: sources[source].tagged for case, source in source_of.items()})
        return table

    @property
    def cases(self) -> list[str]:
        """All cases, sorted."""
        return sorted(self._source_of)

    def source_of(self, case: str) -> str:
        """Return the name of the source of a case; raises SourceError for a case that is in none."""
        if case not in self._source_of:
            raise SourceError(f"case '{case}' is in no source of this dataset. Add it to the `cases` of one source.")
        return self._source_of[case]

    def known(self, case: str) -> np.ndarray:
        """Return boolean [K]: the labels that a case was annotated for."""
        return self._known[self.source_of(case)]

    def tagged(self, case: str) -> np.ndarray:
        """Return boolean [K]: the labels of which only tags say in which slices of a case they are present."""
        return self._tagged[self.source_of(case)]

    def tags(self, case: str) -> dict[str, Present]:
        """Return label -> where it is present, for the labels tagged in a case (see `Tags`)."""
        return self._tags.cases.get(case, {})

    @property
    def tag_axis(self) -> Axis:
        """The axis of the image files along which tags count slices: x, y or z."""
        return self._tags.axis

    def weight(self, case: str) -> float:
        """Return how often a case is sampled within a label, relative to the others."""
        return self.sources[self.source_of(case)].weight

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities that sources declare, sorted."""
        return tuple(sorted({source.modality for source in self.sources.values() if source.modality}))

    @property
    def only_modality(self) -> str | None:
        """The modality that all annotated sources declare; None where they differ or one declares none."""
        declared = {source.modality for source in self.sources.values() if source.annotated}
        return declared.pop() if len(declared) == 1 else None

    def modality_of(self, case: str) -> int:
        """Return the number (1..) of the modality of a case in `modalities`; 0 where its source declares none."""
        modality = self.sources[self.source_of(case)].modality
        return self.modalities.index(modality) + 1 if modality else 0

    def groups(self) -> list[list[str]]:
        """Return the largest sets of labels that are annotated together (those contained in no other), sorted."""
        sets = {frozenset(source.annotated) for source in self.sources.values()} - {frozenset()}
        largest = [one for one in sets if not any(one < other for other in sets)]
        return sorted([name for name in self.labels.names if name in one] for one in largest)

    def dataset_of(self, case: str) -> str:
        """Return the dataset that a case comes from; a source that names none is a dataset of its own."""
        source = self.source_of(case)
        return self.sources[source].dataset or source

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that sources declare, sorted."""
        return tuple(sorted({source.domain for source in self.sources.values() if source.domain}))

    def domain_of(self, case: str) -> str | None:
        """Return the domain that a case comes from; None where its source declares none."""
        return self.sources[self.source_of(case)].domain

    def patient_of(self, case: str) -> str:
        """Return the patient that a case is of; a case for which none is declared is a patient of its own."""
        return self.patients.get(case, case)

    def annotated(self, case: str) -> tuple[str, ...]:
        """Return the names of the labels that a case was annotated for."""
        return tuple(name for name, known in zip(self.labels.names, self.known(case), strict=True) if known)

    @property
    def is_complete(self) -> bool:
        """Whether every case is annotated for every label."""
        return all(known.all() for known in self._known.values())

    def cases_of(self, source: str) -> list[str]:
        """Return the cases of a source, sorted."""
        return sorted(case for case, name in self._source_of.items() if name == source)

    def supervised(self, cases: Iterable[str] | None = None, tags: bool = False) -> np.ndarray:
        """Return boolean [K]: the labels any of these cases (default: all) is annotated or, with `tags`, tagged for."""
        sources = self._with_cases if cases is None else {self.source_of(case) for case in cases}
        supervised = [np.zeros(len(self.labels), dtype=bool)]
        return np.any([*supervised, *(self._known[name] | (self._tagged[name] & tags) for name in sources)], axis=0)

    def never_annotated(self, cases: Iterable[str] | None = None, tags: bool = False) -> list[str]:
        """Return the labels none of these cases (default: all) is annotated or, with `tags`, tagged for."""
        supervised = self.supervised(cases, tags)
        return [name for name, has_cases in zip(self.labels.names, supervised, strict=True) if not has_cases]

    def counts(self) -> np.ndarray:
        """Return integer [sources, K]: cases per source that are annotated for each label (order of `sources`)."""
        return np.stack([len(self.cases_of(name)) * known for name, known in self._known.items()])

    def allowed_values(self, case: str) -> set[int]:
        """Return the values that the label map of a case may hold: background, ignore and its annotated labels."""
        values = {v for vs, known in zip(self.labels.values, self.known(case), strict=True) if known for v in vs}
        return values | {0} | ({self.labels.ignore} if self.labels.ignore is not None else set())
