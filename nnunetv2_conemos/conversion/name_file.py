"""The file that `--list` writes for people to edit: every label with the names found for it, and those unknown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_conemos.annotations.labels import IGNORE
from nnunetv2_conemos.conversion.names import NameTable, NameUse

HEAD = """\
# label: [name or pattern, ...]. Case, separators (space _ - .) and accents do not matter; * is anything.
# Names under `ignore` are left out. The order of the labels is that of their values in the dataset.
"""


def write_name_file(file: Path, table: NameTable, uses: Sequence[NameUse], keep: bool) -> None:
    """Write a table to edit; with `keep`, all entries of the present table stay, else the names found alone."""
    lines = [HEAD]
    for label in (*table.labels, IGNORE):
        found = [use for use in uses if use.label == label and use.outcome != "unknown"]
        names = [quoted(name) for name in table.entries.get(label, ())]
        names = names if keep else [f"{quoted(use.name)}  # {use.cases} case(s)" for use in found]
        if names or keep:
            lines += [f"{quoted(label)}:", *(f"- {name}" for name in names)]
    unknown = [use for use in uses if use.outcome == "unknown"]
    if unknown:
        lines += ["", f"# {len(unknown)} name(s) are unknown: move each below a label, or below `ignore`."]
        lines += [f"# - {quoted(use.name)}  # {use.cases} case(s), nearest: {use.label}" for use in unknown]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def quoted(name: str) -> str:
    """Return a name as a string of YAML."""
    return json.dumps(name, ensure_ascii=False)
