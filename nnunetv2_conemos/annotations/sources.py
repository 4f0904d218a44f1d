"""Who annotated what: the `sources` of a dataset.json, read once and asked by everybody else.

Axis letters: **K** labels (columns of `known`). Column k-1 belongs to the k-th foreground label id in label mode and to
the k-th entry of nnU-Net's `foreground_regions` in region mode, so it always matches nnU-Net's output heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.tags import Axis, Present, Tags, check_tags_fit, parse_tags
from nnunetv2_conemos.errors import SourceError, shorten

EVERYTHING = "all cases"  # name of the implied source of a dataset without `sources`


class Source(BaseModel):
    """One group of cases that were annotated for the same labels.

    `cases` are globs over case identifiers, `annotated` names labels (or regions) of `labels`; an empty list means
    unlabelled. `tagged` names labels of which only `tags` says in which slices of a case they are present. `modality`
    names the kind of image (CT, T1, ...), for methods that are told it. `weight` scales how often the cases of this
    source are drawn within a label (1 = as often as others). `dataset` tells which sources are parts of one dataset,
    for methods that draw datasets (a source is its own). `domain` names the scanner, centre or sequence that the cases
    come from: splits and tables look at it, methods do not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: tuple[str, ...] = Field(min_length=1)
    annotated: tuple[str, ...]
    tagged: tuple[str, ...] = ()
    modality: str | None = None
    dataset: str | None = None
    domain: str | None = Field(default=None, min_length=1)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class SourceTable:
    """Which labels are known in which case.

    Built from a dataset.json and the identifiers of its training cases; every case belongs to exactly one source.
    A dataset.json without `sources` is annotated for everything.
    """

    def __init__(
        self,
        labels: LabelSpace,
        sources: Mapping[str, Source],
        source_of: Mapping[str, str],
        tags: Tags = Tags(),  # noqa: B008 (frozen)
    ):
        self.labels = labels
        self.sources = dict(sources)
        self._source_of = dict(source_of)
        self._with_cases = set(source_of.values())
        self._tags = tags
        self._known = {name: self._columns(name, "annotated") for name in sources}
        self._tagged = {name: self._columns(name, "tagged") for name in sources}
        self.largest_set = max(int(known.sum()) for known in self._known.values())
        check_contradictions(self.sources)

    def _columns(self, source: str, key: str) -> np.ndarray:
        """Boolean [K]: the labels that a source names under a key."""
        names = getattr(self.sources[source], key)
        return np.isin(
            np.arange(len(self.labels)), [self.labels.index(name, f"source '{source}', {key}") for name in names]
        )

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any], cases: Iterable[str]) -> SourceTable:
        """Raises SourceError: wrong types, unknown labels, orphans, cases in two sources, globs that match nothing."""
        cases = sorted(cases)
        labels = LabelSpace.from_dataset_json(dataset_json)
        if "sources" not in dataset_json:
            if "tags" in dataset_json:
                raise SourceError("`tags` without `sources`: declare which labels of which cases are `tagged`.")
            everything = Source(cases=("*",), annotated=labels.names)
            return cls(labels, {EVERYTHING: everything}, dict.fromkeys(cases, EVERYTHING))
        sources, tags = parse_sources(dataset_json["sources"]), parse_tags(dataset_json.get("tags", {}))
        source_of = match_cases(sources, cases)
        table = cls(labels, sources, source_of, tags)
        check_tags_fit(tags, {case: sources[source].tagged for case, source in source_of.items()})
        return table

    @property
    def cases(self) -> list[str]:
        return sorted(self._source_of)

    def source_of(self, case: str) -> str:
        """Name of the source of a case; raises SourceError for a case that is in none."""
        try:
            return self._source_of[case]
        except KeyError:
            raise SourceError(
                f"case '{case}' is in no source of this dataset. Add it to the globs of one source."
            ) from None

    def known(self, case: str) -> np.ndarray:
        """Boolean [K]: the labels this case was annotated for."""
        return self._known[self.source_of(case)]

    def tagged(self, case: str) -> np.ndarray:
        """Boolean [K]: the labels of which it is only known in which slices of this case they are present."""
        return self._tagged[self.source_of(case)]

    def tags(self, case: str) -> dict[str, Present]:
        """Label -> where it is present, of the labels tagged in this case (see `Tags`)."""
        return self._tags.cases.get(case, {})

    @property
    def tag_axis(self) -> Axis:
        """The axis of the image files that slices are counted along: x, y or z."""
        return self._tags.axis

    def weight(self, case: str) -> float:
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
        """Number (1..) of the modality of a case in `modalities`; 0 where its source declares none."""
        modality = self.sources[self.source_of(case)].modality
        return self.modalities.index(modality) + 1 if modality else 0

    def groups(self) -> list[list[str]]:
        """The largest sets of labels that are annotated together: those that are part of no other, sorted."""
        sets = {frozenset(source.annotated) for source in self.sources.values()} - {frozenset()}
        largest = [one for one in sets if not any(one < other for other in sets)]
        return sorted([name for name in self.labels.names if name in one] for one in largest)

    def dataset_of(self, case: str) -> str:
        """Name of the dataset that a case comes from; a source that names none is its own."""
        source = self.source_of(case)
        return self.sources[source].dataset or source

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains that sources declare, sorted."""
        return tuple(sorted({source.domain for source in self.sources.values() if source.domain}))

    def domain_of(self, case: str) -> str | None:
        """Name of the domain that a case comes from; None where its source declares none."""
        return self.sources[self.source_of(case)].domain

    def annotated(self, case: str) -> tuple[str, ...]:
        return tuple(name for name, known in zip(self.labels.names, self.known(case), strict=True) if known)

    @property
    def is_complete(self) -> bool:
        """Whether every case is annotated for every label."""
        return all(known.all() for known in self._known.values())

    def cases_of(self, source: str) -> list[str]:
        return sorted(case for case, name in self._source_of.items() if name == source)

    def supervised(self, cases: Iterable[str] | None = None, tags: bool = False) -> np.ndarray:
        """Boolean [K]: labels that one of these cases (all, by default) is annotated, or with `tags` tagged, for."""
        sources = self._with_cases if cases is None else {self.source_of(case) for case in cases}
        supervised = [np.zeros(len(self.labels), dtype=bool)]
        return np.any([*supervised, *(self._known[name] | (self._tagged[name] & tags) for name in sources)], axis=0)

    def never_annotated(self, cases: Iterable[str] | None = None, tags: bool = False) -> list[str]:
        """Names of the labels that none of these cases (all, by default) is annotated, or with `tags` tagged, for."""
        return [
            n for n, supervised in zip(self.labels.names, self.supervised(cases, tags), strict=True) if not supervised
        ]

    def counts(self) -> np.ndarray:
        """Integer [sources, K]: cases per source that are annotated for each label (order of `sources`)."""
        sizes = [sum(name == source for name in self._source_of.values()) for source in self.sources]
        return np.stack([size * self._known[name] for name, size in zip(self.sources, sizes, strict=True)])

    def allowed_values(self, case: str) -> set[int]:
        """Label-map values that may stand in this case: background, ignore, and those of its annotated labels."""
        values = {v for vs, known in zip(self.labels.values, self.known(case), strict=True) if known for v in vs}
        return values | {0} | ({self.labels.ignore} if self.labels.ignore is not None else set())


def check_contradictions(sources: Mapping[str, Source]) -> None:
    """Raises SourceError where nothing is known at all, or a label is both annotated and tagged."""
    if not any(source.annotated or source.tagged for source in sources.values()):
        raise SourceError("no source annotates any label: all `annotated` lists are empty. Name what was annotated.")
    for name, source in sources.items():
        both = [label for label in source.tagged if label in source.annotated]
        if both:
            raise SourceError(
                f"source '{name}': {shorten(both)} is both annotated and tagged. Tags of annotated labels follow from "
                "the label maps; remove it from `tagged`."
            )


def parse_sources(raw: Any) -> dict[str, Source]:
    """`sources` of a dataset.json as records; raises SourceError that names the entry and the type expected."""
    if not isinstance(raw, dict) or not raw:
        raise SourceError(
            f"`sources` must be an object of named sources, found {type(raw).__name__}. "
            'Example: {"LiTS": {"cases": ["liver_*"], "annotated": ["liver"]}}'
        )
    sources = {}
    for name, entry in raw.items():
        try:
            sources[name] = Source.model_validate(entry)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'entry'}: {e['msg']} (found {e['input']!r})" for e in error.errors()
            )
            raise SourceError(f"source '{name}': {problems}") from None
    return sources


def match_cases(sources: Mapping[str, Source], cases: Iterable[str]) -> dict[str, str]:
    """Case -> source name; raises SourceError that lists orphans, cases in two sources and globs without a match."""
    cases = list(cases)
    problems, hits = [], {case: [] for case in cases}
    for name, source in sources.items():
        for pattern in source.cases:
            matched = [case for case in cases if fnmatchcase(case, pattern)]
            if not matched:
                problems.append(f"source '{name}': '{pattern}' matches no case. Correct or remove it.")
            for case in matched:
                if name not in hits[case]:
                    hits[case].append(name)
    orphans = [case for case, names in hits.items() if not names]
    if orphans:
        problems.append(
            f"{len(orphans)} case(s) in no source: {shorten(orphans)}. Add them to the globs of one source."
        )
    for case, names in hits.items():
        if len(names) > 1:
            problems.append(
                f"case '{case}' is in {len(names)} sources ({', '.join(names)}); it must be in exactly one."
            )
    if problems:
        raise SourceError(" ".join(problems))
    return {case: names[0] for case, names in hits.items()}
