"""Errors and findings, and the helpers that word their messages."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # importing it takes time, in which Ctrl-C would print a traceback
    from pydantic import ValidationError

Location = tuple[int | str, ...]  # of a value within a file: keys and places, from the outside in
MAX_FOUND = 80  # characters of a wrong value that a message shows
SHORT = reprlib.Repr()  # of values that may hold themselves, or one value a million times, as YAML can
SHORT.maxlevel, SHORT.maxstring, SHORT.maxother, SHORT.maxlist, SHORT.maxtuple, SHORT.maxdict = 4, 99, 99, 20, 20, 20


class ConemosError(Exception):
    """Base of all errors of this package: what is wrong and where, what was expected and found, and what to do."""


class InputError(ConemosError, ValueError):
    """Error for an option, or for the content of a file, that cannot be used."""


class SourceError(InputError):
    """Error for a dataset whose `labels`, `sources`, `tags` and cases do not fit together."""


class FileError(ConemosError, OSError):
    """Error for a file that cannot be read, written or trusted."""


class MissingFileError(FileError, FileNotFoundError):
    """Error for a file, folder or dataset that does not exist."""


class VolumeError(FileError):
    """Error for an image or a label map that is not what it should be; `what` is wrong, and what to do (`remedy`)."""

    def __init__(self, what: str, remedy: str):
        super().__init__(f"{what} {remedy}")
        self.what, self.remedy = what, remedy

    def __reduce__(self) -> tuple[type[VolumeError], tuple[str, str]]:
        return type(self), (self.what, self.remedy)


class ExistingFileError(FileError, FileExistsError):
    """Error for a result that exists already and that nobody asked to replace."""


class UnsupportedError(ConemosError, NotImplementedError):
    """Error for a combination of method, data and configuration that is not offered."""


class ShortOfMemoryError(ConemosError, MemoryError):
    """Error for a case that does not fit into the memory of this machine."""


class DivergedError(ConemosError, ArithmeticError):
    """Error for a training whose loss is not finite."""


@dataclass(frozen=True)
class Finding:
    """A problem that a check found: where (variable, source, case), what, and the remedy. Only errors fail a check."""

    severity: Literal["error", "warning"]
    where: str
    what: str
    remedy: str


def brief(error: Exception) -> str:
    """Return the last line of a library's error message about a file that it cannot read."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'NAME'?` with the known name closest to an unknown one; empty if no names are known."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""


def shorten(items: Iterable[str], limit: int = 8) -> str:
    """Return a list as text: `a, b, c and 5 more`."""
    items = list(items)
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def dotted(location: Location) -> str:
    """Return the location of a value as text: `datasets.0.name`."""
    return ".".join(map(str, location))


def describe(error: ValidationError, place: Callable[[Location], str] = dotted) -> str:
    """Return pydantic's errors as `entry: message (found value)`, joined by semicolons, without duplicates.

    `place` puts the location of a value into words; the file or entry as a whole has no name.
    """
    problems, found = [], error.errors(include_url=False)
    nested = {problem["loc"][:length] for problem in found for length in range(len(problem["loc"]))}
    for problem in found:
        if problem["type"] == "too_short" and problem["loc"] in nested:
            continue  # its items are wrong, which is said already
        value = SHORT.repr(problem["input"])
        shown = value if len(value) <= MAX_FOUND else f"{value[:MAX_FOUND]}..."
        ending = "" if problem["type"] == "missing" else f" (found {shown})"
        entry = place(problem["loc"]) if problem["loc"] else ""
        problems.append(f"{entry}{': ' if entry else ''}{problem['msg']}{ending}")
    return "; ".join(dict.fromkeys(problems))
