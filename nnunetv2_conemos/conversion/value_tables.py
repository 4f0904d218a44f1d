"""Tables value -> name beside label maps: JSON, CSV, and the label descriptions of ITK-SNAP."""

from __future__ import annotations

import csv
import re
from io import StringIO
from pathlib import Path
from typing import Any

from nnunetv2_conemos.annotations.labels import MAX_VALUE
from nnunetv2_conemos.conversion.patterns import ending_of
from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.text_files import delimiter_of, parse_json, read_text

TABLES = (".json", ".csv", ".txt")
SNAP = re.compile(r'\s*(\d+)\s+(?:[\d.]+\s+){6}"([^"]*)"\s*')  # value, colour, visibility, "name"


def table_beside(file: Path) -> Path | None:
    """Return the table that lies beside a label map under the same name; None where there is none."""
    stem = file.name[: -len(ending_of(file))]
    return next((table for ending in TABLES if (table := file.with_name(stem + ending)).is_file()), None)


def read_values(file: Path) -> dict[int, str]:
    """Read value -> name, without the background 0; raises InputError for values that are not whole, or named twice."""
    readers = {".json": _json_rows, ".csv": _csv_rows, ".txt": _snap_rows}
    if file.suffix.lower() not in readers:
        raise InputError(f"{file}: expected a table in a file with {', '.join(TABLES)}, found '{file.suffix}'.")
    values: dict[int, str] = {}
    for value, name in readers[file.suffix.lower()](read_text(file), file):
        if not re.fullmatch(r"\d{1,5}", value) or int(value) > MAX_VALUE or not name.strip():
            raise InputError(
                f"{file}: expected a value from 0 to {MAX_VALUE} and a name, found '{value}': '{name}'. Correct it."
            )
        if values.setdefault(int(value), name.strip()) != name.strip():
            raise InputError(f"{file}: value {value} is named '{values[int(value)]}' and '{name.strip()}'. Keep one.")
    values.pop(0, None)
    if not values:
        raise InputError(f"{file}: expected at least one value other than 0, found none. Add value and name.")
    return values


def _json_rows(text: str, file: Path) -> list[tuple[str, str]]:
    content: Any = parse_json(text, str(file))
    if not isinstance(content, dict):
        raise InputError(f'{file}: expected {{"1": "liver", ...}}, found {type(content).__name__}. Correct the file.')
    turned = [(str(value), name) for name, value in content.items() if type(value) is int]
    rows = turned if len(turned) == len(content) else list(content.items())
    if wrong := [f"{value}: {name!r:.40}" for value, name in rows if not isinstance(name, str)]:
        raise InputError(f'{file}: expected {{"1": "liver", ...}}, found {wrong[0]}. Correct the file.')
    return rows


def _csv_rows(text: str, file: Path) -> list[tuple[str, str]]:
    first = text.partition("\n")[0]
    delimiter = delimiter_of(first)
    rows = [[field.strip() for field in row] for row in csv.reader(StringIO(text, newline=""), delimiter=delimiter)]
    rows = [row for row in rows if any(row)]
    if rows and not rows[0][0].isdecimal():
        del rows[0]  # the header
    if wrong := [row for row in rows if len(row) < 2]:
        raise InputError(f"{file}: expected rows value{delimiter}name, found {wrong[0]}. Correct the line.")
    return [(row[0], row[1]) for row in rows]


def _snap_rows(text: str, file: Path) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = [SNAP.fullmatch(line) for line in lines]
    if wrong := [line for line, match in zip(lines, found, strict=True) if match is None]:
        raise InputError(f'{file}: expected lines of ITK-SNAP, value R G B A vis mesh "name", found {wrong[0]!r:.80}.')
    return [(match[1], match[2]) for match in found if match]
