"""Settings of semi-supervised learning: which cases train with or without labels, validate, or are left out.

Nothing else distinguishes semi-supervised learning, unsupervised domain adaptation and semi-supervised domain
generalisation (Wang & Li, NeurIPS 2023, arXiv:2310.11320).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.splits import Fold, stratified_draw, stratified_split
from nnunetv2_conemos.errors import InputError, SourceError, did_you_mean, shorten

MAX_FOLDS = 5


@dataclass(frozen=True)
class Amounts:
    """Numbers of annotated cases that stay labelled (None: all) and of others that validate (None: labelled ones).

    Each is a number of cases or, below 1, a fraction of them, rounded up.
    """

    labelled: Fraction | None
    validation: Fraction | None = None


@dataclass(frozen=True)
class Roles:
    """The use of each case: `labelled` and `validation` ones keep their annotations, those of `unlabelled` are hidden.

    All others are left out. `held_out`: domains of which each is left out of one fold; none: all folds have all cases.
    """

    labelled: frozenset[str]
    validation: frozenset[str]
    unlabelled: frozenset[str]
    held_out: tuple[str, ...] = ()

    @property
    def cases(self) -> frozenset[str]:
        """All cases that take part."""
        return self.labelled | self.validation | self.unlabelled

    def without(self, table: SourceTable) -> list[tuple[str, Roles]]:
        """Return a pair for each domain held out: words for messages that name it, and the roles without it."""
        if not self.held_out:
            return [("", self)]
        parts = []
        for domain in self.held_out:
            kept = not_of(table, of_domains(table, [domain]))
            labelled, validation, unlabelled = (
                frozenset(filter(kept, part)) for part in (self.labelled, self.validation, self.unlabelled)
            )
            parts.append((f" without domain '{domain}'", Roles(labelled, validation, unlabelled)))
        return parts


def ssl(table: SourceTable, amounts: Amounts, rng: np.random.Generator) -> Roles:
    """Assign roles for semi-supervised learning: a few cases stay labelled, all others become unlabelled."""
    return divide(table, {"": table.cases}, amounts, rng)


def uda(
    table: SourceTable, sources: Sequence[str], targets: Sequence[str], amounts: Amounts, rng: np.random.Generator
) -> Roles:
    """Assign roles for unsupervised domain adaptation.

    Cases of the source domains (default: all that are not targets) stay labelled, those of the target domains become
    unlabelled, apart from validation cases, which are sampled from them if some are wanted.
    """
    require_known_domains(table, "source-domain", sources)
    require_known_domains(table, "target-domain", targets)
    sources = sources or [domain for domain in table.domains if domain not in targets]
    if not sources or not targets:
        raise InputError(f"uda: name a --target-domain, and leave a source domain ({', '.join(table.domains)}).")
    if both := set(sources) & set(targets):
        raise InputError(f"uda: {shorten(sorted(both))} cannot be both source and target domain.")
    origin, target = (of_domains(table, domains) for domains in (sources, targets))
    labelled = divide(table, {" in the source domains": origin}, Amounts(amounts.labelled), rng)
    adapted = divide(table, {" in the target domains": target}, Amounts(Fraction(0), amounts.validation), rng)
    both = Roles(labelled.labelled, adapted.validation, labelled.unlabelled | adapted.unlabelled)
    return without_validating(table, both)


def semidg(table: SourceTable, held_out: Sequence[str], amounts: Amounts, rng: np.random.Generator) -> Roles:
    """Assign roles for semi-supervised domain generalisation: a few cases of each domain stay labelled.

    Each domain in `held_out` (default: all annotated ones) is unseen in one fold; one unseen in every fold is left out.
    """
    require_known_domains(table, "test-domain", held_out)
    pools = {domain: of_domains(table, [domain]) for domain in table.domains}
    if len(pools) < 2:
        raise InputError(f"semidg: expected at least two domains, found {', '.join(pools)}.")
    annotated = [domain for domain, pool in pools.items() if any(table.known(case).any() for case in pool)]
    held_out = tuple(dict.fromkeys(held_out or annotated))
    if silent := [domain for domain in held_out if domain not in annotated]:
        raise InputError(f"--test-domain {silent[0]}: none of its cases is annotated, so there is nothing to test on.")
    unseen = pools[held_out[0]] if len(held_out) == 1 else []
    seen = {d: list(filter(not_of(table, unseen), pool)) for d, pool in pools.items() if (d,) != held_out}
    drawn = divide(table, {f" in domain '{name}'": seen[name] for name in annotated if name in seen}, amounts, rng)
    unlabelled = frozenset().union(*seen.values()) - drawn.labelled
    return without_validating(table, Roles(drawn.labelled, drawn.validation, unlabelled, held_out))


def of_domains(table: SourceTable, domains: Iterable[str]) -> list[str]:
    """Return the cases that come from any of these domains."""
    return [case for case in table.cases if table.domain_of(case) in set(domains)]


def not_of(table: SourceTable, cases: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that says whether a case is of none of the patients of these cases."""
    patients = {table.patient_of(case) for case in cases}
    return lambda case: table.patient_of(case) not in patients


def require_known_domains(table: SourceTable, option: str, domains: Iterable[str]) -> None:
    """Raise SourceError for sources without a domain, and for a domain that no source has."""
    silent = [name for name, source in table.sources.items() if not source.domain]
    if silent:
        raise SourceError(
            f"expected a `domain` in every source, found none in {shorten(map(repr, silent))}. Name in `sources` of "
            "dataset.json the scanner, centre or sequence that their cases come from."
        )
    for domain in domains:
        if domain not in table.domains:
            hint = did_you_mean(domain, table.domains)
            raise SourceError(f"--{option}: no source has the domain '{domain}' ({', '.join(table.domains)}).{hint}")


def divide(table: SourceTable, pools: Mapping[str, Sequence[str]], amounts: Amounts, rng: np.random.Generator) -> Roles:
    """Sample labelled cases, and validation cases, from the annotated ones of each pool; the rest becomes unlabelled.

    Further cases of a patient that validates are left out. `pools`: words that say which pool it is -> cases. Raises
    ValueError where too few of them are annotated.
    """
    labelled, validation, everyone = set[str](), set[str](), set[str]()
    for where, pool in pools.items():
        annotated = [case for case in pool if table.known(case).any()]
        number = len(annotated) if amounts.labelled is None else amount(amounts.labelled, len(annotated))
        further = 0 if amounts.validation is None else amount(amounts.validation, len(annotated))
        if number + further > len(annotated):
            wanted = [f"{n} to {role}" for n, role in ((number, "stay labelled"), (further, "validate")) if n]
            raise InputError(f"expected annotated cases{where}, {' and '.join(wanted)}; found {len(annotated)}.")
        drawn, held = draw_apart(table, annotated, number, further, where, rng)
        labelled |= set(drawn)
        validation |= set(held)
        everyone |= set(pool)
    return without_validating(table, Roles(frozenset(labelled), frozenset(validation), frozenset(everyone - labelled)))


def draw_apart(
    table: SourceTable, cases: Sequence[str], number: int, further: int, where: str, rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Sample labelled cases and `further` ones that validate, of other patients; raises ValueError for too few."""
    if not table.patients:
        drawn = stratified_draw(table, cases, number, rng)
        return drawn, stratified_draw(table, sorted(set(cases) - set(drawn)), further, rng)
    held = stratified_draw(table, cases, further, rng, spread=False)
    others = list(filter(not_of(table, held), cases))
    if number > len(others):
        raise InputError(
            f"expected {number} annotated cases{where} to stay labelled, of other patients than {further} to validate; "
            f"found {len(others)}. Label or validate fewer."
        )
    return stratified_draw(table, others, number, rng), held


def without_validating(table: SourceTable, roles: Roles) -> Roles:
    """Return roles in which no case trains whose patient validates."""
    apart = not_of(table, roles.validation)
    labelled, unlabelled = (frozenset(filter(apart, cases)) for cases in (roles.labelled, roles.unlabelled))
    return Roles(labelled, roles.validation, unlabelled, roles.held_out)


def amount(share: Fraction, of: int) -> int:
    """Return a number of cases, given as such or as a fraction below 1, which is rounded up."""
    return math.ceil(share * of) if share < 1 else int(share)


def check_roles(table: SourceTable, roles: Roles) -> None:
    """Raise ValueError where a fold would have no unlabelled case, too few labelled ones, or would lose a label."""
    supervised = set(table.labels.names) - set(table.never_annotated())
    for where, part in roles.without(table):
        if not part.unlabelled:
            raise InputError(
                f"nothing is left to be unlabelled{where}: all {len(part.labelled)} cases would stay labelled. "
                "Label fewer of them."
            )
        patients = {table.patient_of(case) for case in part.labelled}
        if len(patients) < 2 - bool(part.validation):
            of_one = " of one patient" if len(part.labelled) > len(patients) else ""
            raise InputError(
                f"{len(part.labelled)} labelled case(s){of_one}{where}: expected at least one to train and one to "
                "validate on. Raise --labelled, or pass --validation to validate on others."
            )
        lost = supervised & set(table.never_annotated(part.labelled))
        if lost:
            raise SourceError(
                f"{shorten(sorted(lost))} would be annotated in none of {len(part.labelled)} labelled case(s){where}. "
                "Raise --labelled, or choose other domains."
            )


def folds_of(table: SourceTable, roles: Roles, folds: int | None, seed: int) -> list[Fold]:
    """Build nnU-Net's folds; `table` has the cases that take part, annotated as `roles` say.

    Labelled cases are divided into `folds` folds (default: 5, or as many as there are patients), and each validates in
    one of them; for each domain held out, one such fold is kept. Where there are validation cases, they alone validate,
    in every fold, and all others train.
    """
    made = []
    for where, part in roles.without(table):
        if part.validation:
            made.append({"train": sorted(part.labelled | part.unlabelled), "val": sorted(part.validation)})
            continue
        patients = {table.patient_of(case) for case in part.labelled}
        number = folds or min(MAX_FOLDS, len(patients))
        if not 2 <= number <= len(patients):
            whose = "patients with labelled cases" if table.patients else "labelled cases"
            raise InputError(f"--folds {number}: expected 2 to {len(patients)}, the {whose}{where}.")
        split = stratified_split(table, number, seed, part.cases)
        made += split[:1] if roles.held_out else split
    return made
