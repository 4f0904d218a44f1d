"""The figures of a campaign as tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- figures: printed by `python -m attack report` -->", "<!-- end of figures -->"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def of_fuzz(records: Sequence[Mapping[str, Any]]) -> str:
    """Return inputs, successes, refusals and failures of each kind."""
    rows = []
    for kind in (*dict.fromkeys(record["kind"] for record in records), "all"):
        own = [record for record in records if kind in ("all", record["kind"])]
        good = Counter(record["outcome"] for record in own if not record["problem"])
        failed = sum(bool(record["problem"]) for record in own)
        rows.append((kind, len(own), good["success"], good["refused"], failed))
    return table(("fuzzed", "inputs", "done", "refused", "failures"), rows)


def of_problems(records: Sequence[Mapping[str, Any]], key: str, name: str, brief: bool = False) -> str:
    """Return attempts and failures for each value of a key; `brief`: only for values with failures, and for all."""
    rows = []
    for value in (*dict.fromkeys(record[key] for record in records), "all"):
        own = [record for record in records if value in ("all", record[key])]
        failed = [record for record in own if record.get("problems") or record.get("problem")]
        if failed or not brief or value == "all":
            rows.append((value, len(own), len(own) - len(failed), len(failed)))
    return table((name, "tried", "survived", "failures"), rows)


def of_truncation(records: Sequence[Mapping[str, Any]]) -> str:
    """Return cuts, refusals and failures for each kind of file."""
    rows = []
    kinds = [re.sub(r"^[^.]*", "*", Path(record["file"]).name) for record in records]
    for kind in (*dict.fromkeys(kinds), "all"):
        own = [record for record, its in zip(records, kinds, strict=True) if kind in ("all", its)]
        good = Counter(record["outcome"] for record in own if not record["problem"])
        failed = sum(bool(record["problem"]) for record in own)
        rows.append((kind, len(own), good["refused"], good["undetectable"], failed))
    return table(("cut file", "cuts", "refused", "valid by itself", "failures"), rows)


def of_resume(records: Sequence[Mapping[str, Any]]) -> str:
    """Return, for each trainer, how many values of the checkpoint differ with and without seeds."""
    rows = []
    for name in dict.fromkeys(record["trainer"] for record in records):
        own = {record["seeded"]: record for record in records if record["trainer"] == name}
        differing = [own[seeded].get("differing", own[seeded]["problem"]) for seeded in (True, False)]
        rows.append((name, own[True]["kills"], *differing))
    return table(("trainer", "kills", "values that differ, seeded", "values that differ, not seeded"), rows)


def of_soak(record: Mapping[str, Any]) -> str:
    """Return the figures of the soak."""
    start, third, end = record["memory_mib"]
    header = ("soak", "commands", "MiB after the first cycle", "a third", "the last", "MiB per hour", "left")
    left = "; ".join(f"{name}: {what}" for name, what in record["problems"].items()) or "nothing"
    minutes = f"{record['seconds'] / 60:.0f} min"
    return table(header, [(minutes, record["commands"], start, third, end, record["mib_per_hour"], left)])


TABLES = {
    "fuzz": of_fuzz,
    "faults": lambda records: "\n\n".join(
        (of_problems(records, "command", "command"), of_problems(records, "fault", "fault"))
    ),
    "pairs": lambda records: of_problems(records, "pair", "two at once", brief=True),
    "truncation": of_truncation,
    "resume": of_resume,
    "soak": of_soak,
}


def report(folder: Path) -> str:
    """Return the tables of all parts whose results lie in a folder."""
    parts = []
    for part, tabulate in TABLES.items():
        file = folder / f"{part}.json"
        if file.is_file():
            parts.append(tabulate(json.loads(file.read_text())["records"]))
    return "\n\n".join(parts)


def failures(part: str, records: Any) -> list[str]:
    """Return one line for each different failure of a part: how often, what, an example."""
    if part == "soak":
        return [f"{name}: {what}" for name, what in records["problems"].items()]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        if problem := record.get("problems") or record.get("problem"):
            text = ", ".join(problem) if isinstance(problem, dict) else problem
            of = next((record[name] for name in ("command", "pair", "reader", "kind") if name in record), "")
            groups.setdefault(f"{of}: {text} {record.get('where', '')}", []).append(record)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [f"{len(found)} x {key} | {json.dumps(found[0])[:600]}" for key, found in ordered]


def write_into(file: Path, text: str) -> None:
    """Replace the figures in a page."""
    page = file.read_text()
    before, rest = page.split(BEGIN)
    file.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
