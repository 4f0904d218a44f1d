"""Settings of semi-supervised learning: which cases train with or without labels, validate, or are left out.

Nothing else distinguishes semi-supervised learning, unsupervised domain adaptation and semi-supervised domain
generalisation (Wang & Li, NeurIPS 2023, arXiv:2310.11320).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
        kept = {domain: {c for c in self.cases if table.domain_of(c) != domain} for domain in self.held_out}
        return [
            (f" without domain '{domain}'", Roles(self.labelled & c, self.validation & c, self.unlabelled & c))
            for domain, c in kept.items()
        ]


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
    return Roles(labelled.labelled, adapted.validation, labelled.unlabelled | adapted.unlabelled)


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
    seen = {domain: pool for domain, pool in pools.items() if (domain,) != held_out}
    drawn = divide(table, {f" in domain '{name}'": seen[name] for name in annotated if name in seen}, amounts, rng)
    unlabelled = frozenset().union(*seen.values()) - drawn.labelled - drawn.validation
    return Roles(drawn.labelled, drawn.validation, unlabelled, held_out)


def of_domains(table: SourceTable, domains: Iterable[str]) -> list[str]:
    """Return the cases that come from any of these domains."""
    return [case for case in table.cases if table.domain_of(case) in set(domains)]


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
    """Sample labelled cases, then validation cases, from the annotated ones of each pool; the rest becomes unlabelled.

    `pools`: words that say which pool it is -> cases. Raises ValueError where too few of them are annotated.
    """
    labelled, validation, everyone = set[str](), set[str](), set[str]()
    for where, pool in pools.items():
        annotated = [case for case in pool if table.known(case).any()]
        number = len(annotated) if amounts.labelled is None else amount(amounts.labelled, len(annotated))
        further = 0 if amounts.validation is None else amount(amounts.validation, len(annotated))
        if number + further > len(annotated):
            wanted = [f"{n} to {role}" for n, role in ((number, "stay labelled"), (further, "validate")) if n]
            raise InputError(f"expected annotated cases{where}, {' and '.join(wanted)}; found {len(annotated)}.")
        drawn = stratified_draw(table, annotated, number, rng)
        rest = sorted(set(annotated) - set(drawn))
        labelled |= set(drawn)
        validation |= set(stratified_draw(table, rest, further, rng))
        everyone |= set(pool)
    return Roles(frozenset(labelled), frozenset(validation), frozenset(everyone - labelled - validation))


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
        if len(part.labelled) < 2 - bool(part.validation):
            raise InputError(
                f"{len(part.labelled)} labelled case(s){where}: expected at least one to train and one to validate on. "
                "Raise --labelled, or pass --validation to validate on others."
            )
        lost = supervised & set(table.never_annotated(part.labelled))
        if lost:
            raise SourceError(
                f"{shorten(sorted(lost))} would be annotated in none of {len(part.labelled)} labelled case(s){where}. "
                "Raise --labelled, or choose other domains."
            )


def folds_of(table: SourceTable, roles: Roles, folds: int | None, seed: int) -> list[Fold]:
    """Build nnU-Net's folds; `table` has the cases that take part, annotated as `roles` say.

    Labelled cases are divided into `folds` folds (default: 5, or as many as there are cases), and each validates in one
    of them; for each domain held out, one such fold is kept. Where there are validation cases, they alone validate, in
    every fold, and all others train.
    """
    made = []
    for where, part in roles.without(table):
        if part.validation:
            made.append({"train": sorted(part.labelled | part.unlabelled), "val": sorted(part.validation)})
            continue
        number = folds or min(MAX_FOLDS, len(part.labelled))
        if not 2 <= number <= len(part.labelled):
            raise InputError(f"--folds {number}: expected 2 to {len(part.labelled)}, the labelled cases{where}.")
        split = stratified_split(table, number, seed, part.cases)
        made += split[:1] if roles.held_out else split
    return made
