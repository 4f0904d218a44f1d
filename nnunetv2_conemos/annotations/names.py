"""Names that people give: labels, and cases, whose identifiers become names of files."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from nnunetv2_conemos.errors import InputError, shorten

MAX_BYTES = 200  # with ending and channel, a file name must stay below 256


def is_text(name: str) -> bool:
    """Return whether a name has no control characters, line breaks or bytes that are no text."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def require_case_ids(cases: Iterable[str], where: str) -> None:
    """Raise InputError, starting with `where`, for identifiers that are no names of files or could leave a folder."""
    wrong = [f"{case!r} {problem}" for case in cases if (problem := _problem_of(case))]
    if wrong:
        raise InputError(
            f"{where}: expected case ids that can be the names of files, found {shorten(wrong)}. Rename these cases."
        )


def _problem_of(case: str) -> str:
    if not case.strip():
        return "(empty)"
    if case in (".", "..") or "/" in case or "\\" in case:
        return "(a path: no / or \\, not . or ..)"
    if not is_text(case):
        return "(with characters that are no text)"
    if case.startswith("._"):
        return "(a file that macOS leaves beside the real one: delete it)"
    if len(case.encode()) > MAX_BYTES:
        return f"(more than {MAX_BYTES} bytes)"
    return ""
