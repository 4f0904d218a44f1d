"""Find cases that look like several of one patient by their names, where `sources` do not say whose they are."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.errors import shorten

MANY = 10  # cases: more than one patient has, unless the name of the patient holds a number

_TIMES = "t|tp|time|timepoint|ses|session|visit|day|week|month|year|fu|followup|follow-up|frame|fr|phase|slice|sl"
_COUNTS = "scan|study|exam|run|rep|repeat|acq|series|ct|mr|mri|v"  # these number the cases of a dataset, too
_WORDS = (
    "pre|post|preop|postop|intraop|before|after|baseline|bl|followup|follow-up|fu|ed|es|diastole|systole|inhale|exhale|"
    "insp|exp|left|right|l|r|lh|rh|test|retest|repeat|rescan|rest|stress|arterial|venous|portal|delayed|native"
)
_DATE = r"(?:^|(?<=[_\-. ]))(?:19|20)\d\d-?[01]\d-?[0-3]\d"
_BEFORE, _AFTER = r"(?:^|(?<=[_\-. \d]))", r"(?=$|[_\-. ])"
TIME = re.compile(rf"(?:{_DATE}|{_BEFORE}(?:(?:{_TIMES})[-_]?\d+|{_WORDS})){_AFTER}")
COUNT = re.compile(rf"{_BEFORE}(?:{_COUNTS})[-_]?\d+{_AFTER}")
LETTER = re.compile(r"(?<=\d)[_\-. ]?[a-e]$")  # p01a, p01_b
NUMBER = re.compile(r"(?<=\d)[_\-.](\d+)$")  # GLI-00005-000


def repeats(cases: Iterable[str]) -> list[list[str]]:
    """Return groups of cases that look like several of one patient: p1_t0 and p1_t1, x_pre and x_post.

    Mere numbers of cases (liver_001, case_0012) are none.
    """
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        groups.setdefault(patient_in(case), []).append(case)
    found = [
        group
        for patient, group in groups.items()
        if patient and len(group) > 1 and (len(group) <= MANY or re.search(r"\d", patient))
    ]
    rest = [group[0] for group in groups.values() if len(group) == 1]
    return found + numbered_alike(rest)


def patient_in(case: str) -> str:
    """Return the name of a case without what distinguishes several of one patient."""
    name = case.casefold()
    patient = LETTER.sub("", COUNT.sub("", TIME.sub("", name)))
    if not re.search(r"\d", patient):  # without times, such names are those of one dataset: abdomen_scan_1
        patient = TIME.sub("", name)
    return re.sub(r"[_\-. ]+", "_", patient).strip("_")


def numbered_alike(cases: Iterable[str]) -> list[list[str]]:
    """Return groups of cases with two numbers, the second of which counts within the first, again and again."""
    forms: dict[str, dict[str, dict[str, str]]] = {}  # form -> patient -> number -> case
    for case in cases:
        if match := NUMBER.search(case):
            patient = case[: match.start()]
            forms.setdefault(re.sub(r"\d+", "#", patient), {}).setdefault(patient, {})[match[1]] = case
    found = []
    for patients in forms.values():
        first, *others = patients.values()
        counted_again = others and all(first.keys() & other.keys() for other in others)
        if counted_again and max(map(len, patients.values())) <= MANY:
            found += [list(numbers.values()) for numbers in patients.values() if len(numbers) > 1]
    return found


def undeclared_repeats(table: SourceTable) -> list[list[str]]:
    """Return groups of cases that look like several of one patient, of which `sources` say nothing."""
    own: dict[str, dict[str, str]] = {}  # dataset -> name within it, without the prefix that a merge adds -> case
    for case in table.cases:
        if case not in table.patients:
            dataset = table.dataset_of(case)
            own.setdefault(dataset, {})[case.removeprefix(f"{dataset}_")] = case
    return [[names[name] for name in group] for names in own.values() for group in repeats(names)]


def repeats_in_words(groups: list[list[str]]) -> str:
    """Return what groups of cases look like, with examples."""
    examples = [" and ".join(group) if len(group) == 2 else shorten(group, 3) for group in groups[:2]]
    return f"{sum(map(len, groups))} cases look like several of one patient ({'; '.join(examples)})"
