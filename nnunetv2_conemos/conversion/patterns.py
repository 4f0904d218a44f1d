"""Patterns of paths such as `{case}/segmentations/{label}.nii.gz`, and the files that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from nnunetv2_conemos.errors import FileError, InputError, MissingFileError, shorten

PLACES = ("case", "patient", "label", "channel")
TOKEN = re.compile(r"\{([^{}]*)\}|\*|\?|[^{*?]+|\{")
VOLUMES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".gipl")  # that SimpleITK reads and that hold 3D volumes


@dataclass(frozen=True)
class Pattern:
    """A path below a folder, with places for the id of a case, its patient, a label and a channel; `*` is anything.

    `{case}` and `{patient}` stand for (part of) one name of a folder or file; so do `{label}`, `{channel}` and `*`.
    Alternatives, which the patterns tried by `auto` have, are written `{ct|mr}`.
    """

    text: str

    def __post_init__(self) -> None:
        unknown = [name for name in re.findall(r"\{([^{}]*)\}", self.text) if name not in PLACES and "|" not in name]
        if unknown or ("{case}" not in self.text and "{patient}" not in self.text):
            raise InputError(
                f"pattern '{self.text}': expected a path with {{case}} or {{patient}}, and no other names in braces "
                f"than {', '.join(PLACES)}, found {shorten(unknown) or 'neither'}. Example: "
                "'{case}/segmentations/{label}.nii.gz'."
            )

    @property
    def has_label(self) -> bool:
        """Whether the name of the file says what is drawn in it."""
        return "{label}" in self.text

    def match(self, path: str, cases: Collection[str] | None = None) -> dict[str, str] | None:
        """Return what stands in the places of a path, under `id` the id of the case; None where it does not match.

        With `cases`, it is one of them, and the longest possible: `pt_1_liver` may be the case `pt_1`, or `pt`.
        """
        limit = 255
        while found := _compiled(self.text, limit).fullmatch(path):
            places = found.groupdict()
            id_of_case = "_".join(dict.fromkeys(places[name] for name in ("patient", "case") if name in places))
            if cases is None or id_of_case in cases:
                return {**places, "id": id_of_case}
            limit = len(places.get("case") or "") - 1
            if limit < 1:
                break
        return None


@lru_cache(maxsize=4096)
def _compiled(text: str, limit: int) -> re.Pattern[str]:
    """Return the regular expression of a pattern in which `{case}` has at most `limit` characters."""
    parts, seen = [], set()
    for token in TOKEN.finditer(text):
        name = token[1]
        if name is None:
            parts.append({"*": "[^/]*", "?": "[^/]"}.get(token[0]) or re.escape(token[0]))
        elif name in seen:
            parts.append(f"(?P={name})")
        elif name in PLACES:
            seen.add(name)
            characters = {"case": f"[^/]{{1,{limit}}}", "channel": r"\d{4}"}.get(name, "[^/]+")
            parts.append(f"(?P<{name}>{characters})")
        else:
            parts.append(f"(?:{'|'.join(re.escape(other) for other in name.split('|'))})")
    return re.compile("".join(parts), re.IGNORECASE if "|" in text else 0)


def filled(text: str, places: Mapping[str, str]) -> str:
    """Return a path in which the places that are known are filled in."""
    return re.sub(r"\{(\w+)\}", lambda place: places.get(place[1], place[0]), text)


def files_below(source: Path) -> list[str]:
    """Return all files below a folder, relative to it, sorted; what is hidden, such as `._x` of macOS, is left out.

    Raises MissingFileError where there is no such folder, and FileError for a folder below it that cannot be read.
    """
    if not source.is_dir():
        raise MissingFileError(f"there is no folder {source}. Name the folder that holds the cases.")
    return sorted(_walk(source))


def _walk(source: Path) -> Iterator[str]:
    above: dict[str, frozenset[str]] = {}  # the real folders around each folder
    for folder, folders, files in os.walk(source, onerror=_unreadable, followlinks=True):
        real, around = os.path.realpath(folder), above.pop(folder, frozenset())
        if real in around:  # a link that leads back
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        above |= {os.path.join(folder, name): around | {real} for name in folders}
        here = Path(folder).relative_to(source)
        yield from ((here / name).as_posix() for name in files if not name.startswith("."))


def _unreadable(error: OSError) -> None:
    """Raise FileError: what lies in a folder that cannot be opened would pass for not annotated."""
    raise FileError(
        f"the folder {error.filename} cannot be read: {error.strerror}. Allow it, or move it out of the source."
    )


def ending_of(file: str | Path) -> str:
    """Return which ending of volumes a file has; empty for other files."""
    name = str(file).lower()
    return next((ending for ending in VOLUMES if name.endswith(ending)), "")
