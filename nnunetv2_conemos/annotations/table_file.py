"""Tables that say, case by case, who annotated what: read, completed, and grouped into `sources`."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.names import require_case_ids
from nnunetv2_conemos.errors import InputError, SourceError, shorten
from nnunetv2_conemos.text_files import delimiter_of, parse_json, read_text

Annotated = dict[str, list[str]]  # case -> labels annotated in it
Traits = dict[str, dict[str, str]]  # case -> what else its source says: key -> value
PATIENT = "patient"
TRAITS = ("modality", "domain", PATIENT)  # what a table may say beside `case` and `labels`
STRICT: Any = {"strict": True, "skipinitialspace": True}  # of CSV: a quote that is left open is an error
MAX_NAME = 40  # of a source, in characters
NO_TRAITS: Mapping[str, dict[str, str]] = MappingProxyType({})


class CaseTable(NamedTuple):
    """The labels annotated in each case of a dataset, and its traits, as read from a file."""

    annotated: Annotated
    traits: Traits


def read_table(path: Path, option: str = "--annotated") -> CaseTable:
    """Read case -> labels from JSON or CSV.

    JSON is `{"case": ["label", ...]}` or `{"case": {"labels": ["label", ...], "patient": "p1"}}`; a CSV file has the
    header `case,labels`. Both may also hold the TRAITS.

    A CSV row holds labels separated by ';' (none = unlabelled); several rows of a case are joined. Fields may also be
    separated by ';' or tabs, as Excel writes them. `option` begins the messages. Raises ValueError where the file has
    another form, and FileNotFoundError where there is none.
    """
    where, readers = f"{option} {path}", {".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise InputError(f"{where}: expected a .json or .csv file, found '{path.suffix}'. Save the table as CSV UTF-8.")
    table = readers[path.suffix.lower()](read_text(path, where), where)
    if not table.annotated:
        raise InputError(f"{where}: expected at least one case, found none. Add them.")
    require_case_ids(table.annotated, where)
    return table


def _read_json(text: str, where: str) -> CaseTable:
    content = parse_json(text, where)
    if not isinstance(content, dict):
        raise InputError(
            f'{where}: expected {{"case": ["label", ...], ...}}, an object case -> labels, found '
            f"{type(content).__name__}. Correct the file."
        )
    table = CaseTable({}, {})
    for case, entry in content.items():
        traits = {**entry} if isinstance(entry, dict) else {"labels": entry}
        labels = traits.pop("labels", None)
        texts = [*labels, *traits.values()] if isinstance(labels, list) else [None]
        if not all(isinstance(text, str) for text in texts) or traits.keys() - {*TRAITS}:
            raise InputError(
                f"{where}, case '{case}': expected a list of label names, or an object of `labels` and, optionally, "
                f"{', '.join(TRAITS)}, found {entry!r:.80}. Correct the entry."
            )
        table.annotated[case] = labels
        if traits:
            table.traits[case] = traits
    return table


def _read_csv(text: str, where: str) -> CaseTable:
    table, header = CaseTable({}, {}), text.partition("\n")[0].strip()
    delimiter = delimiter_of(header)
    rows = csv.reader(StringIO(text, newline=""), delimiter=delimiter, **STRICT)
    try:
        columns = next(rows, [])
        if sorted(columns) != sorted({"case", "labels", *(set(columns) & set(TRAITS))}):
            raise InputError(
                f"{where}: expected the header 'case,labels', optionally with the columns {', '.join(TRAITS)}, "
                f"found {header[:80]!r}. Correct the first line."
            )
        for fields in rows:
            if fields:
                _add_row(table, columns, fields, f"{where}, line {rows.line_num}")
    except csv.Error as error:
        raise InputError(
            f"{where}, line {rows.line_num}: not valid CSV ({error}). Correct this line and the quotes before it."
        ) from None
    return table


def _add_row(table: CaseTable, columns: list[str], fields: list[str], where: str) -> None:
    row = dict(zip(columns, (field.strip() for field in fields), strict=False))
    if len(fields) != len(columns) or not row["case"]:
        raise InputError(
            f"{where}: expected {len(columns)} fields, {', '.join(columns)}, the labels separated by ';' and in quotes "
            f"where the fields are too, found {[field[:80] for field in fields if field]}. Correct the line."
        )
    case, traits = row["case"], {key: row[key] for key in TRAITS if row.get(key)}
    if table.traits.setdefault(case, traits) != traits:
        raise InputError(
            f"{where}: expected {table.traits[case]} for case '{case}', as in an earlier line, found {traits}."
        )
    table.annotated.setdefault(case, []).extend(labels_of_field(row["labels"]))


def labels_of_field(field: str) -> list[str]:
    """Split the labels of a CSV field at ';'; a label that holds one is in quotes."""
    names = next(csv.reader([field], delimiter=";", **STRICT), []) if field else []
    return [name.strip() for name in names if name.strip()]


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
