"""The entries of `sources` in a dataset.json: read, checked, and matched with the cases of the dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from glob import has_magic
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nnunetv2_conemos.errors import SourceError, describe, did_you_mean, shorten

Name = Annotated[str, Field(min_length=1)]


def for_every_case(patient: Any) -> Any:
    """Return the one patient of all cases of a source as a mapping glob -> patient; leave a mapping as it is."""
    return {"*": patient} if isinstance(patient, str) else patient


Patients = Annotated[dict[str, Name], BeforeValidator(for_every_case)]  # glob over case identifiers -> patient


class Source(BaseModel):
    """A group of cases that were annotated for the same labels.

    `cases` are globs over case identifiers. `annotated` names labels (or regions) of `labels`; an empty list means
    unlabelled. `tagged` names labels of which only `tags` says in which slices of a case they are present. `modality`
    names the kind of image (CT, T1, ...), for methods that condition on it. `weight` scales how often the cases of this
    source are sampled within a label (1 = as often as others). `dataset` says which sources are parts of one dataset,
    for methods that sample datasets (by default each source is one). `domain` names the scanner, centre or sequence
    that the cases come from; splits and tables use it, methods do not. `patient` says which cases are of one patient
    (glob -> patient; a case that it does not name is a patient of its own): no split takes a patient apart.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: tuple[str, ...] = Field(min_length=1)
    annotated: tuple[str, ...]
    tagged: tuple[str, ...] = ()
    modality: str | None = None
    dataset: str | None = None
    domain: str | None = Field(default=None, min_length=1)
    patient: Patients = {}
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
            matched = matching(pattern, hits)
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


def match_patients(patterns: Mapping[str, str], cases: Iterable[str], where: str) -> dict[str, str]:
    """Return case -> patient for the cases that globs name.

    Raises SourceError, starting with `where`, for a glob without a case, and for a case of two patients.
    """
    known, patients, problems = dict.fromkeys(cases), dict[str, str](), []
    for pattern, patient in patterns.items():
        matched = matching(pattern, known)
        if not matched:
            problems.append(f"'{pattern}' matches no case.{did_you_mean(pattern, known)}")
        for case in matched:
            if patients.setdefault(case, patient) != patient:
                problems.append(f"case '{case}' is of two patients, '{patients[case]}' and '{patient}'.")
    if problems:
        raise SourceError(f"{where}: {' '.join(problems[:8])} Name the cases of each patient, each case once.")
    return patients


def patients_of(sources: Mapping[str, Source], source_of: Mapping[str, str]) -> dict[str, str]:
    """Return case -> patient, as sources declare them; raises SourceError as `match_patients` does."""
    patients = {}
    for name, source in sources.items():
        if source.patient:
            cases = [case for case, own in source_of.items() if own == name]
            patients |= match_patients(source.patient, cases, f"source '{name}', `patient`")
    return patients


def matching(pattern: str, cases: Collection[str]) -> list[str]:
    """Return the cases that a glob matches, `cases` being quick to search."""
    if not has_magic(pattern):
        return [pattern] if pattern in cases else []
    return [case for case in cases if fnmatchcase(case, pattern)]
