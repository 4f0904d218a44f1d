"""Where the cases of a dataset came from: `origins.csv`, by which predictions find their way back."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from nnunetv2_conemos.conversion.found import FoundCase
from nnunetv2_conemos.errors import InputError, shorten
from nnunetv2_conemos.text_files import read_text

ORIGINS = "origins.csv"


class Origin(NamedTuple):
    """A case, what it was called where it came from, its patient there, its image files, and its DICOM series."""

    case: str
    original: str
    patient: str
    images: tuple[Path, ...]
    series: str


def origins_of(cases: Iterable[tuple[str, FoundCase]]) -> list[Origin]:
    """Return the origins of cases, given by their id in the result and as they were found."""
    return [
        Origin(case, found.case, found.patient or "", tuple(path.absolute() for path in found.images), found.series)
        for case, found in cases
    ]


def origins_text(origins: Iterable[Origin]) -> str:
    """Return the table of origins: a row per case, its image files in quotes and separated by lines."""
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(Origin._fields)
    rows.writerows([*origin[:3], "\n".join(map(str, origin.images)), origin.series] for origin in origins)
    return text.getvalue()


def read_origins(file: Path) -> dict[str, Origin]:
    """Return case -> origin of a table; raises InputError for a file of another form, MissingFileError for none."""
    rows = list(csv.reader(StringIO(read_text(file), newline="")))
    if not rows or tuple(rows[0]) != Origin._fields or any(len(row) != len(rows[0]) for row in rows):
        raise InputError(
            f"{file}: expected the columns {', '.join(Origin._fields)}, as conemos import writes them, found "
            f"{shorten(rows[0]) if rows else 'nothing'}. Name the {ORIGINS} of the dataset."
        )
    return {row[0]: Origin(row[0], row[1], row[2], tuple(map(Path, row[3].split("\n"))), row[4]) for row in rows[1:]}
