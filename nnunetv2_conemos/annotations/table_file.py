"""Tables that say, case by case, who annotated what: read, completed, and grouped into `sources`."""

from __future__ import annotations

import csv
import glob
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.errors import InputError, MissingFileError, SourceError, shorten

Annotated = dict[str, list[str]]  # case -> labels annotated in it
Traits = dict[str, dict[str, str]]  # case -> what else its source says: key -> value
PATIENT = "patient"
TRAITS = ("modality", "domain", PATIENT)  # columns of a CSV file beside `case` and `labels`
MAX_NAME = 40  # of a source, in characters
NO_TRAITS: Mapping[str, dict[str, str]] = MappingProxyType({})


class CaseTable(NamedTuple):
    """The labels annotated in each case of a dataset, and its traits, as read from a file."""

    annotated: Annotated
    traits: Traits


def read_table(path: Path) -> CaseTable:
    """Read case -> labels from JSON (`{"case": ["label", ...]}`) or CSV (header `case,labels`, optionally TRAITS).

    A CSV row holds labels separated by ';' (none = unlabelled); several rows of a case are joined. Raises ValueError
    where the file has another form, and FileNotFoundError where there is none.
    """
    if not path.is_file():
        raise MissingFileError(f"--annotated: there is no file {path}.")
    readers = {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise InputError(f"--annotated {path}: expected a .json or .csv file, found '{path.suffix}'.")
    table = readers[path.suffix.lower()](path)
    if not table.annotated:
        raise InputError(f"--annotated {path}: expected at least one case, found none.")
    return table


def _read_json(path: Path) -> CaseTable:
    def require_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        if repeated:
            raise InputError(f"--annotated {path}: {shorten(repeated)} named more than once. Join the labels.")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=require_unique)
    except json.JSONDecodeError as error:
        raise InputError(f"--annotated {path}: not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"--annotated {path}: expected an object case -> labels, found {type(content).__name__}.")
    for case, labels in content.items():
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise InputError(f"--annotated {path}, case '{case}': expected a list of label names, found {labels!r}.")
    return CaseTable(content, {})


def _read_csv(path: Path) -> CaseTable:
    table = CaseTable({}, {})
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, restkey="too many", skipinitialspace=True)
        columns = list(rows.fieldnames or ())
        if sorted(columns) != sorted({"case", "labels", *(set(columns) & set(TRAITS))}):
            raise InputError(
                f"--annotated {path}: expected the header 'case,labels', optionally with the columns "
                f"{', '.join(TRAITS)}, found {rows.fieldnames}."
            )
        for row in rows:
            where = f"--annotated {path}, line {rows.line_num}"
            if not row["case"] or None in row.values() or "too many" in row:
                raise InputError(
                    f"{where}: expected {len(columns)} fields, {', '.join(columns)}, the labels separated by ';', "
                    f"found {[field for field in row.values() if field]}."
                )
            case = row["case"].strip()
            labels = [label.strip() for label in row["labels"].split(";")]
            traits = {key: row[key].strip() for key in TRAITS if row.get(key, "").strip()}
            if table.traits.setdefault(case, traits) != traits:
                raise InputError(
                    f"{where}: expected {table.traits[case]} for case '{case}', as in an earlier line, found {traits}."
                )
            table.annotated.setdefault(case, []).extend(label for label in labels if label)
    return table


def complete_table(annotated: Mapping[str, list[str]], cases: Iterable[str], rest: list[str] | None) -> Annotated:
    """Complete a table with the cases of the dataset that it does not name: they get the labels `rest`.

    Raises SourceError for cases that are not in the dataset, and for cases it does not name where `rest` is None.
    """
    cases = sorted(cases)
    strangers = sorted(set(annotated) - set(cases))
    missing = sorted(set(cases) - set(annotated))
    problems = []
    if strangers:
        problems.append(
            f"{len(strangers)} case(s) of the table are not in the dataset: {shorten(strangers)}. "
            f"Name cases without channel and file ending, e.g. {shorten(cases[:2])}."
        )
    if missing and rest is None:
        problems.append(
            f"{len(missing)} case(s) of the dataset are not in the table: {shorten(missing)}. Add them, or pass "
            "`--missing unlabelled` (nothing is annotated in them) or `--missing all` (everything is)."
        )
    if problems:
        raise SourceError(" ".join(problems))
    return {case: annotated.get(case, rest or []) for case in cases}


def group_sources(
    annotated: Mapping[str, list[str]],
    labels: LabelSpace,
    dataset: str | None = None,
    traits: Mapping[str, dict[str, str]] = NO_TRAITS,
) -> dict[str, dict[str, Any]]:
    """Build `sources` of a dataset.json: one for each set of labels and traits, with its cases by name, not by glob.

    The patients of the cases do not separate sources; each source says which of its cases are of which patient.

    Labels are in the order of nnU-Net's heads. `dataset`: the dataset that all of the sources are parts of. Raises
    SourceError for an unknown label, with the known label nearest to it.
    """
    groups: dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], list[str]] = {}
    for case, names in sorted(annotated.items()):
        columns = {labels.index(name, f"case '{case}'") for name in names}
        known = tuple(labels.names[column] for column in sorted(columns))
        own = tuple((key, value) for key, value in traits.get(case, {}).items() if key != PATIENT)
        groups.setdefault((known, own), []).append(case)
    sources = {}
    for number, ((known, own), cases) in enumerate(sorted(groups.items(), key=lambda group: -len(group[1])), start=1):
        name = ", ".join([_readable_name(known, labels.names), *(value for _, value in own)])
        if len(name) > MAX_NAME or name in sources:
            name = f"group {number}"
        sources[name] = {"cases": [glob.escape(case) for case in cases], "annotated": list(known), **dict(own)}
        if dataset:
            sources[name]["dataset"] = dataset
        if patients := {glob.escape(case): traits[case][PATIENT] for case in cases if PATIENT in traits.get(case, {})}:
            sources[name][PATIENT] = patients
    return sources


def _readable_name(known: tuple[str, ...], every: tuple[str, ...]) -> str:
    lacking = [name for name in every if name not in known]
    if not known:
        return "unlabelled"
    if not lacking:
        return "all labels"
    return "all but " + ", ".join(lacking) if len(lacking) < len(known) else " + ".join(known)
