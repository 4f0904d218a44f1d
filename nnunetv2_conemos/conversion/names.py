"""Names that people gave to what they drew, and the labels that they mean: the table that decides what is imported.

Names are compared without regard to case, separators (space _ - .), accents and the way in which umlauts are written.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nnunetv2_conemos.annotations.labels import BACKGROUND, IGNORE, require_names
from nnunetv2_conemos.conversion.found import FoundCase, Structure
from nnunetv2_conemos.errors import InputError, shorten
from nnunetv2_conemos.text_files import read_yaml

Table = Literal["tg263", "names"]  # instead of a file: the table of this package, or each name as its own label
UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
MAGIC = re.compile(r"[*?]")
Outcome = Literal["mapped", "ignored", "unknown"]


class NameUse(NamedTuple):
    """A name as it was found, in how many cases, the label nearest to it, and what became of it."""

    name: str
    cases: int
    label: str
    outcome: Outcome


class NameTable:
    """Which names and patterns mean which label; those of `ignore`, which no label can be called, are left out.

    `entries` are in the order of the labels, `where` is how messages name the table. Raises InputError for a name of
    two labels.
    """

    def __init__(self, entries: Mapping[str, Sequence[str]], where: str):
        self.entries, self.where = entries, where
        self._exact: dict[str, str] = {}
        for label, names in entries.items():
            for name in (*([] if label == IGNORE else [label]), *names):
                other = self._exact.setdefault(normal(name), label)
                if other != label:
                    raise InputError(
                        f"{where}: '{name}' stands for '{other}' and for '{label}'. Leave it in one of them."
                    )
        patterns = [(normal(name), label) for label in entries for name in entries[label] if MAGIC.search(name)]
        self._patterns = [(pattern.replace("[", "[[]"), label) for pattern, label in patterns]  # people call things [1]

    @property
    def labels(self) -> list[str]:
        """All labels, in order."""
        return [label for label in self.entries if label != IGNORE]

    def label_of(self, name: str) -> str | None:
        """Return the label that a name means, `ignore`, or None for an unknown name; a name comes before patterns.

        Raises InputError where patterns of two labels match it.
        """
        own = normal(name)
        if own in self._exact:
            return self._exact[own]
        matched = {label: pattern for pattern, label in self._patterns if fnmatchcase(own, pattern)}
        if len(matched) > 1:
            raise InputError(
                f"{self.where}: '{name}' matches patterns of {len(matched)} labels, "
                f"{shorten(f'{label} ({pattern})' for label, pattern in matched.items())}. Add the name itself to one."
            )
        return next(iter(matched), None)

    def nearest(self, name: str) -> str:
        """Return the label whose names resemble a name most."""
        found = difflib.get_close_matches(normal(name), self._exact, n=1, cutoff=0)
        return self._exact[found[0]] if found else ""

    def uses(self, cases: Iterable[FoundCase]) -> list[NameUse]:
        """Return every name that occurs, the most frequent first, and what becomes of it."""
        counts: dict[str, int] = {}
        for case in cases:
            for name in {structure.name for structure in case.structures}:
                counts[name] = counts.get(name, 0) + 1
        found = []
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            label = self.label_of(name)
            outcome: Outcome = "unknown" if label is None else "ignored" if label == IGNORE else "mapped"
            found.append(NameUse(name, count, self.nearest(name) if label is None else label, outcome))
        return found


def normal(name: str) -> str:
    """Return a name in the form in which names are compared: `Dünndarm (re.)` becomes `duenndarm_(re_)`."""
    text = unicodedata.normalize("NFKC", name).casefold().translate(UMLAUTS)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub(r"[\s_.\-]+", "_", text).strip("_") or text


def name_table(labels: Path | Table | Mapping[str, Sequence[str]], cases: Sequence[FoundCase]) -> NameTable:
    """Return the table of a file, of a mapping, of this package (`tg263`), or of the names themselves (`names`).

    Raises InputError for a table of another form.
    """
    if isinstance(labels, Mapping):
        return NameTable(checked(labels, "labels"), "labels")
    if labels == "tg263":
        table = Path(str(files("nnunetv2_conemos.conversion") / "tg263.yaml"))
        return NameTable(checked(read_yaml(table), str(table)), "the table of TG-263")
    if labels == "names":
        return own_names([structure for case in cases for structure in case.structures])
    return NameTable(checked(read_yaml(Path(labels), f"--labels {labels}"), f"--labels {labels}"), f"--labels {labels}")


def checked(content: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Return the entries of a table label -> names; raises InputError for anything else."""
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"{where}: expected `label: [name or pattern, ...]` for each label, found {content!r:.80}. Correct it."
        )
    entries = {}
    for label, names in content.items():
        listed = [] if names is None else [names] if isinstance(names, str) else names
        if not isinstance(label, str) or not isinstance(listed, list | tuple):
            raise InputError(f"{where}: expected `label: [name, ...]`, found {label!r:.80}: {names!r:.80}. Correct it.")
        if wrong := [entry for entry in listed if not isinstance(entry, str) or not entry.strip()]:
            raise InputError(f"{where}, '{label}': expected names, found {wrong[0]!r:.80}. Put names into quotes.")
        entries[label] = tuple(listed)
    if odd := [label for label in entries if label.casefold() == IGNORE != label]:
        raise InputError(f"{where}: '{odd[0]}' would be a label. Write it `{IGNORE}`, which leaves names out.")
    if odd := [label for label in entries if label.casefold() == BACKGROUND]:
        raise InputError(f"{where}: '{odd[0]}' is what no label covers. Names to leave out belong to '{IGNORE}'.")
    require_names(entries)
    return entries


def own_names(structures: Iterable[Structure]) -> NameTable:
    """Return the table in which each name is a label, in the order of its values where it has any, else of names.

    Names that compare as equal are one label, called by the most frequent spelling.
    """
    spellings: dict[str, dict[str, int]] = {}
    values: dict[str, int] = {}
    for structure in structures:
        key = normal(structure.name)
        counts = spellings.setdefault(key, {})
        counts[structure.name] = counts.get(structure.name, 0) + 1
        value = re.match(r"\d+", structure.key)
        values.setdefault(key, int(value[0]) if value else 0)
    order = sorted(spellings, key=lambda key: (values[key], natural(key)))
    entries = {}
    for key in order:
        label = max(spellings[key], key=lambda name: spellings[key][name]).strip()
        entries[label] = tuple(name for name in spellings[key] if name != label)
    if reserved := sorted(label for label in entries if label.casefold() in (BACKGROUND, IGNORE)):
        raise InputError(
            f"a label cannot be called {shorten(reserved)}, which nnU-Net reserves. Say what the files of that "
            "name mean: write a table with --list --labels tg263, edit it, and pass it as --labels."
        )
    require_names(entries)
    return NameTable(entries, "the names found")


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers within a text by size: L2 before L10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]


def require_known(uses: Iterable[NameUse], where: str) -> None:
    """Raise InputError for names that no label has."""
    unknown = [f"'{use.name}' ({use.cases} case(s), nearest: {use.label})" for use in uses if use.outcome == "unknown"]
    if unknown:
        raise InputError(
            f"expected names that {where} knows, found {len(unknown)} other(s): {shorten(unknown, 12)}. Write a table "
            "with --list, add each name to a label or to `ignore`, and pass it as --labels; or pass --ignore-unknown."
        )
