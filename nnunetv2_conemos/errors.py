"""The error of everything that a dataset.json says about its cases, and what such messages have in common."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


class SourceError(ValueError):
    """`labels`, `sources` and `tags` of a dataset.json, and its cases, do not fit together."""


def brief(error: Exception) -> str:
    """The last line of what a library says of a file that it cannot read."""
    return (str(error).strip() or repr(error)).splitlines()[-1]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: where (variable, source, case), what, and what to do. Only errors fail a check."""

    severity: Literal["error", "warning"]
    where: str
    what: str
    remedy: str


def shorten(items: Iterable[str], limit: int = 8) -> str:
    """`a, b, c and 5 more`."""
    items = list(items)
    shown = ", ".join(items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
