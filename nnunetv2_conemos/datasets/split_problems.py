"""What can be wrong with the content of a splits_final.json: sentences that name fold, part, case and nearest case."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.errors import did_you_mean, shorten

PARTS = ("train", "val")


def problems_of(content: Any, table: SourceTable) -> Iterator[str]:
    """Yield a sentence for everything that is wrong with the content of a splits_final.json."""
    if not isinstance(content, list) or not content:
        yield f"expected a list of folds, found {in_words(content)}."
        return
    for number, fold in enumerate(content):
        if not isinstance(fold, dict) or not fold.keys() >= set(PARTS):
            yield f"fold {number}: expected an object with 'train' and 'val', found {in_words(fold)}."
            continue
        wrong = [
            problem for part in PARTS for problem in problems_of_part(fold[part], f"fold {number}, '{part}'", table)
        ]
        yield from wrong or shared(fold, number, table)


def problems_of_part(cases: Any, where: str, table: SourceTable) -> Iterator[str]:
    """Yield what is wrong with one part of a fold."""
    if not isinstance(cases, list) or not cases:
        yield f"{where}: expected a list of at least one case, found {in_words(cases)}."
        return
    if strange := [case for case in cases if not isinstance(case, str)]:
        yield f"{where}: expected names of cases, found {in_words(strange[0])}."
        return
    known = set(table.cases)
    if unknown := [case for case in dict.fromkeys(cases) if case not in known]:
        named = [f"'{case}'{nearest(case, table.cases)}" for case in unknown[:3]]
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        yield f"{where}: not a case of this dataset: {', '.join(named)}{more}."
    if twice := [case for case, times in Counter(cases).items() if times > 1]:
        yield f"{where}: named more than once: {shorten(map(repr, twice))}."


def shared(fold: Mapping[str, list[str]], number: int, table: SourceTable) -> Iterator[str]:
    """Yield the cases, and the patients, that both train and validate in a fold."""
    if both := sorted(set(fold["train"]) & set(fold["val"])):
        yield f"fold {number}: in 'train' and in 'val': {shorten(map(repr, both))}."
        return
    trained = {table.patient_of(case): case for case in fold["train"]}
    if leaks := {table.patient_of(case): case for case in fold["val"] if table.patient_of(case) in trained}:
        named = [f"'{patient}' ({trained[patient]} trains, {case} validates)" for patient, case in leaks.items()]
        yield f"fold {number}: {len(leaks)} patient(s) in 'train' and in 'val': {shorten(named, 3)}."


def in_words(value: Any) -> str:
    """Return a JSON value in words, for messages."""
    if isinstance(value, dict):
        return f"an object with the keys {shorten(map(repr, value))}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list ({json.dumps(value)[:40]})" if value else "an empty list"
    return json.dumps(value, ensure_ascii=False)[:40]


def nearest(name: str, cases: Sequence[str]) -> str:
    """Return the case that an unknown name most likely means, in brackets: itself without file ending and channel."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text.strip()).casefold()

    file = re.split(r"[/\\]", name)[-1]
    endings = [file[: place.start()] for place in re.finditer(r"\.", file)]
    forms = {plain(re.sub(r"_\d{4}$", "", form)) for form in (file, *endings)} | {plain(form) for form in endings}
    alike = [case for case in cases if plain(case) in forms | {plain(name)}]
    hint = f" Did you mean '{max(alike, key=len)}'?" if alike else did_you_mean(name, cases)
    return f" ({hint.strip()})" if hint else ""
