"""`conemos check DATASET`: everything that would spoil a training and can be seen before it.

First the machine (`environment`), then the dataset: do `sources` fit the cases, do raw and preprocessed copies agree,
do the label maps hold what their source says? The last needs every label map, read in parallel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.overview import similar_names
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import check_schema, read_dataset_json
from nnunetv2_conemos.datasets.folders import find_raw, raw_cases, require_same_tables
from nnunetv2_conemos.datasets.inspect import CaseContent, read_contents
from nnunetv2_conemos.errors import Finding, SourceError, shorten

FEW = 2  # cases of which a label may well be absent


@dataclass(frozen=True)
class Report:
    """Findings about a dataset and, where its `sources` are sound, the table and where its labels occur.

    `occurs` [sources, K] counts the annotated cases in which a label has at least one voxel.
    """

    findings: list[Finding]
    table: SourceTable | None = None
    occurs: np.ndarray | None = None


def check_dataset(dataset: str, processes: int) -> Report:
    """Check a raw dataset, given by name or id; raises FileNotFoundError where there is none."""
    name, raw = find_raw(dataset)
    file = raw / "dataset.json"
    dataset_json = read_dataset_json(raw)
    lacking = [key for key in ("channel_names", "labels", "file_ending") if key not in dataset_json]
    if lacking:
        return Report([Finding("error", str(file), f"lacks {shorten(lacking)}.", "Add what nnU-Net requires.")])
    try:
        check_schema(dataset_json, file)
    except ValueError as error:
        return Report([Finding("error", str(file), str(error), "Correct the file.")])
    cases = raw_cases(raw)
    if not cases:
        return Report([Finding("error", str(raw / "imagesTr"), "holds no case.", "Images are CASE_0000.FILE_ENDING.")])
    try:
        table = SourceTable.from_dataset_json(dataset_json, cases)
    except SourceError as error:
        return Report([Finding("error", str(file), str(error), "`conemos declare` writes `sources` from a table.")])
    findings = [*check_copies(name), *check_unannotated(table), *check_names(table)]
    contents = read_contents(cases, dataset_json, processes)
    readable = [content for content in contents if content.values or not content.problem]
    findings += [*check_readable(contents), *check_values(table, readable), *check_unlabelled(table, readable)]
    findings += check_shown(table, readable)
    return Report([*findings, *check_absent(table, readable)], table, count_occurrences(table, readable))


def check_copies(name: str) -> list[Finding]:
    """Raw and preprocessed dataset.json must say the same."""
    try:
        require_same_tables(name)
    except SourceError as error:
        return [Finding("error", "dataset.json", str(error), "Training would refuse to start.")]
    return []


def check_unannotated(table: SourceTable) -> list[Finding]:
    """Labels without any annotated case: nothing wrong is taught, but they are never predicted either."""
    what, remedy = "is annotated by no source: never predicted.", "Add it to `annotated`, or remove it from `labels`."
    tagged = "is tagged, but annotated by no source: CMERTrainer learns it, all others never predict it."
    lonely, unknown = table.never_annotated(), table.never_annotated(tags=True)
    return [Finding("warning", f"label '{name}'", what if name in unknown else tagged, remedy) for name in lonely]


def check_readable(contents: Iterable[CaseContent]) -> list[Finding]:
    """Files that do not exist, cannot be read, or do not lie on one grid."""
    return [Finding("error", f"case '{c.case}'", c.problem, c.remedy) for c in contents if c.problem]


def check_values(table: SourceTable, contents: Iterable[CaseContent]) -> list[Finding]:
    """Values that stand in no annotated label or region of their case; cases of a source are told together."""
    known = {v for values in table.labels.values for v in values}
    stray: dict[tuple[str, frozenset[int]], list[str]] = {}
    for content in contents:
        values = content.values - table.allowed_values(content.case)
        if values:
            stray.setdefault((table.source_of(content.case), values), []).append(content.case)
    findings = []
    for (source, values), cases in stray.items():
        where = f"source '{source}', {len(cases)} case(s): {shorten(cases, 20)}"
        for value in sorted(values & known):
            what = (
                f"value {value} ({_names(table.labels, value)}) stands in no label annotated there: it teaches nothing."
            )
            remedy = "Name the label in `annotated` if all cases of the source have it, else set these voxels to 0."
            findings.append(Finding("error", where, what, remedy))
        for value in sorted(values - known):
            what = f"value {value} stands in no entry of `labels`."
            findings.append(Finding("error", where, what, "Correct the label maps or `labels`."))
    return findings


def _names(labels: LabelSpace, value: int) -> str:
    return ", ".join(name for name, values in zip(labels.names, labels.values, strict=True) if value in values)


def check_unlabelled(table: SourceTable, contents: Iterable[CaseContent]) -> list[Finding]:
    """Ignore label in unlabelled cases: nnU-Net's fingerprint would count it as foreground."""
    what = (
        f"is unlabelled, but its map holds the ignore label ({table.labels.ignore}); nnU-Net takes it for foreground."
    )
    return [
        Finding("error", f"case '{content.case}'", what, "Write a map of zeros.")
        for content in contents
        if not table.known(content.case).any() and table.labels.ignore in content.values
    ]


def check_shown(table: SourceTable, contents: Collection[CaseContent]) -> list[Finding]:
    """nnU-Net's fingerprint takes intensities from labelled voxels, and breaks off where there are none."""
    foreground = {v for values in table.labels.values for v in values}
    if not contents or any(foreground & content.values for content in contents):
        return []
    what = "no label map shows any label: planning cannot take intensities from labelled voxels, and fails."
    return [Finding("error", "labelsTr", what, "Annotate at least one case, which also lets thresholds be chosen.")]


def check_names(table: SourceTable) -> list[Finding]:
    """Labels whose names look like one label written in two ways, as merging may leave them."""
    what, remedy = "differ only in writing.", "If they are one label, merge again with --rename."
    return [
        Finding("warning", f"labels {' and '.join(map(repr, alike))}", what, remedy)
        for alike in similar_names(table.labels.names)
    ]


def count_occurrences(table: SourceTable, contents: Iterable[CaseContent]) -> np.ndarray:
    """Integer [sources, K]: annotated cases in which the label occurs."""
    occurs = np.zeros_like(table.counts())
    rows = {source: row for row, source in enumerate(table.sources)}
    for content in contents:
        here = np.array([not content.values.isdisjoint(values) for values in table.labels.values])
        occurs[rows[table.source_of(content.case)]] += here & table.known(content.case)
    return occurs


def check_absent(table: SourceTable, contents: Collection[CaseContent]) -> list[Finding]:
    """Labels that a source is said to annotate but that none of its cases holds: the worst mistake there is.

    Of one or two cases it may well be true, so that is a warning, unless more cases, of all sources together, lack it.
    """
    seen = {table.source_of(content.case) for content in contents}
    counts, occurs = table.counts(), count_occurrences(table, contents)
    never, nowhere = (counts > 0) & (occurs == 0), (occurs.sum(0) == 0) & (counts.sum(0) > FEW)
    remedy = "Remove it from `annotated`, unless somebody looked for it in these cases and it truly is in none."
    findings = []
    for row, source in enumerate(table.sources):
        cases = len(table.cases_of(source))
        what = f"declared annotated, but it occurs in none of {cases} case(s): taught as absent."
        for k in np.flatnonzero(never[row]) if source in seen else []:
            severity = "error" if cases > FEW or nowhere[k] else "warning"
            findings.append(Finding(severity, f"source '{source}', label '{table.labels.names[k]}'", what, remedy))
    return findings
