"""The entries of `sources` in a dataset.json: read, checked, and matched with the cases of the dataset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nnunetv2_conemos.errors import SourceError, describe, shorten


class Source(BaseModel):
    """A group of cases that were annotated for the same labels.

    `cases` are globs over case identifiers. `annotated` names labels (or regions) of `labels`; an empty list means
    unlabelled. `tagged` names labels of which only `tags` says in which slices of a case they are present. `modality`
    names the kind of image (CT, T1, ...), for methods that condition on it. `weight` scales how often the cases of this
    source are sampled within a label (1 = as often as others). `dataset` says which sources are parts of one dataset,
    for methods that sample datasets (by default each source is one). `domain` names the scanner, centre or sequence
    that the cases come from; splits and tables use it, methods do not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: tuple[str, ...] = Field(min_length=1)
    annotated: tuple[str, ...]
    tagged: tuple[str, ...] = ()
    modality: str | None = None
    dataset: str | None = None
    domain: str | None = Field(default=None, min_length=1)
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)


def check_contradictions(sources: Mapping[str, Source]) -> None:
    """Raise SourceError where nothing is known at all, or where a label is both annotated and tagged."""
    if not any(source.annotated or source.tagged for source in sources.values()):
        raise SourceError("no source annotates any label: all `annotated` lists are empty. Name what was annotated.")
    for name, source in sources.items():
        both = [label for label in source.tagged if label in source.annotated]
        if both:
            raise SourceError(
                f"source '{name}': {shorten(both)} is both annotated and tagged. The label maps already show in which "
                "slices an annotated label is present; remove it from `tagged`."
            )


def parse_sources(raw: Any) -> dict[str, Source]:
    """Read `sources` of a dataset.json; raises SourceError naming source, entry, the type expected and the value."""
    if not isinstance(raw, dict) or not raw:
        raise SourceError(
            f"`sources`: expected an object of named sources, found {type(raw).__name__}. "
            'Example: {"LiTS": {"cases": ["liver_*"], "annotated": ["liver"]}}'
        )
    sources = {}
    for name, entry in raw.items():
        try:
            sources[name] = Source.model_validate(entry)
        except ValidationError as error:
            raise SourceError(f"source '{name}': {describe(error)}.") from None
    return sources


def match_cases(sources: Mapping[str, Source], cases: Iterable[str]) -> dict[str, str]:
    """Return case -> source; raises SourceError listing cases in no source or in several, and globs without a case."""
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
            f"{len(orphans)} case(s) in no source: {shorten(orphans)}. Add them to the `cases` of one source."
        )
    for case, names in hits.items():
        if len(names) > 1:
            problems.append(
                f"case '{case}' is in {len(names)} sources ({', '.join(names)}); it must be in exactly one."
            )
    if problems:
        raise SourceError(" ".join(problems))
    return {case: names[0] for case, names in hits.items()}
