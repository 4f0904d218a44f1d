"""Check a raw dataset for everything that would spoil a training and can be seen before it.

Do `sources` fit the cases, do the raw and the preprocessed copy agree, do the label maps hold what their source says?
Every image and label map is read, unless only headers are wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.overview import similar_names
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.consistency import check_copies, check_datasets, check_patients, check_splits
from nnunetv2_conemos.datasets.dataset_json import find_problems, read_dataset_json
from nnunetv2_conemos.datasets.folders import find_raw, raw_cases
from nnunetv2_conemos.datasets.inspect import CaseContent, count_occurrences, read_contents
from nnunetv2_conemos.datasets.label_rules import never_written
from nnunetv2_conemos.datasets.orientations import describe_orientations
from nnunetv2_conemos.errors import ConemosError, Finding, SourceError, shorten

REQUIRED = ("channel_names", "labels", "file_ending")
FEW = 2  # cases of which a label may well be absent
NOT_READ = Finding(
    "warning", "voxels", "were not read (quick): damaged files and wrong values stay unseen.", "Check without --quick."
)


@dataclass(frozen=True)
class CheckReport:
    """Findings about a dataset and, where its `sources` are sound, who annotated what and where labels occur.

    `occurs` [sources, K] counts the annotated cases in which a label has at least one voxel.
    """

    findings: list[Finding]
    table: SourceTable | None = None
    occurs: np.ndarray | None = None

    @property
    def errors(self) -> list[Finding]:
        """The findings that fail the check."""
        return [finding for finding in self.findings if finding.severity == "error"]


def check(dataset: str | int, *, processes: int = 1, quick: bool = False) -> CheckReport:
    """Check a raw dataset; whatever is wrong with its sources, cases and label maps becomes a finding.

    Args:
        dataset: name or id of a raw dataset.
        processes: how many read cases; more than one requires a script with `if __name__ == "__main__":`.
        quick: read only headers, no voxels; a finding says so.

    Raises FileNotFoundError where there is no such dataset, and ValueError where nnU-Net has no reader for its images.
    """
    name, raw = find_raw(dataset)
    findings, dataset_json, cases = read_entries(raw)
    if not cases:
        return CheckReport(findings)
    findings += check_copies(name, processes)
    try:
        table = SourceTable.from_dataset_json(dataset_json, cases)
    except SourceError as error:
        where, remedy = str(raw / "dataset.json"), "`conemos declare` writes `sources` from a table."
        return CheckReport([Finding("error", where, str(error), remedy), *findings])
    findings += [*check_splits(name, raw, table), *check_patients(table), *check_datasets(table)]
    findings += [*check_unannotated(table), *check_names(table), *check_written(table.labels)]
    contents = read_contents(cases, dataset_json, processes, quick)
    findings += [*check_readable(contents), *check_orientations(contents)]
    if quick:
        return CheckReport([*findings, NOT_READ], table)
    readable = [content for content in contents if content.values]
    findings += [*check_values(table, readable), *check_unlabelled(table, readable)]
    findings += check_shown(table, readable)
    return CheckReport([*findings, *check_absent(table, readable)], table, count_occurrences(table, readable))


def read_entries(raw: Path) -> tuple[list[Finding], dict[str, Any], dict[str, dict[str, Any]]]:
    """Read the dataset.json and the cases of a raw dataset; no cases where findings forbid to go on."""
    file, content, cases = raw / "dataset.json", {}, {}
    try:
        content = read_dataset_json(raw)
        lacking = [key for key in REQUIRED if key not in content]
        if lacking and "modality" not in content:
            return [Finding("error", str(file), f"lacks {shorten(lacking)}.", "Add what nnU-Net requires.")], {}, {}
        if problems := find_problems(content):
            return [Finding("error", str(file), what, "Then plan and preprocess.") for what in problems], {}, {}
        cases = raw_cases(raw)
    except ConemosError as error:
        return [Finding("error", "dataset.json and cases", str(error), "nnU-Net reads these first.")], {}, {}
    if not cases:
        return [Finding("error", str(raw / "imagesTr"), "has no case.", "Images are CASE_0000.FILE_ENDING.")], {}, {}
    return check_number(content, len(cases)), content, cases


def check_number(dataset_json: Mapping[str, Any], cases: int) -> list[Finding]:
    """Find a `numTraining` that is not the number of cases, which nnU-Net refuses when it verifies a dataset."""
    found = dataset_json.get("numTraining")
    if isinstance(found, int) and not isinstance(found, bool) and found == cases:
        return []
    what = f"expected {cases}, the number of cases, found {found!r:.80}."
    return [Finding("error", "dataset.json, `numTraining`", what, f"Set it to {cases}, or add the missing cases.")]


def check_written(labels: LabelSpace) -> list[Finding]:
    """Find sets of regions that maps may hold, but that nnU-Net cannot write: it knows one value for each region."""
    what = "have a value of their own, but predictions cannot show it: nnU-Net writes one region over the other."
    remedy = "Declare these voxels as a region too, within the others, if they matter."
    return [Finding("warning", f"regions {regions}", what, remedy) for regions in never_written(labels)]


def check_unannotated(table: SourceTable) -> list[Finding]:
    """Find labels without an annotated case: that does no harm, but they are never predicted."""
    what, remedy = "is annotated by no source: never predicted.", "Add it to `annotated`, or remove it from `labels`."
    tagged = "is tagged, but annotated by no source: CMERTrainer learns it, all others never predict it."
    lonely, unknown = table.never_annotated(), table.never_annotated(tags=True)
    return [Finding("warning", f"label '{name}'", what if name in unknown else tagged, remedy) for name in lonely]


def check_readable(contents: Iterable[CaseContent]) -> list[Finding]:
    """Find files that do not exist, cannot be read, or do not lie on one grid."""
    return [Finding("error", f"case '{c.case}'", c.problem, c.remedy) for c in contents if c.problem]


def check_orientations(contents: Iterable[CaseContent]) -> list[Finding]:
    """Find images that are stored in different orientations: nnU-Net then sees bodies mirrored or turned."""
    what = describe_orientations({content.case: content.orientation for content in contents})
    remedy = (
        "nnU-Net works on voxels as stored, so left and right may change places between cases. Bring all to one order "
        "with `conemos merge --orientation LPS`, or name a reader that does "
        '("overwrite_image_reader_writer": "SimpleITKIOWithReorient" in dataset.json) before planning.'
    )
    return [Finding("warning", "imagesTr", f"{what}.", remedy)] if what else []


def check_values(table: SourceTable, contents: Iterable[CaseContent]) -> list[Finding]:
    """Find values that belong to no annotated label or region of their case; cases of a source share a finding."""
    known = {v for values in table.labels.values for v in values}
    unannotated: dict[tuple[str, frozenset[int]], list[str]] = {}
    for content in contents:
        values = content.values - table.allowed_values(content.case)
        if values:
            unannotated.setdefault((table.source_of(content.case), values), []).append(content.case)
    findings = []
    for (source, values), cases in unannotated.items():
        where = f"source '{source}', {len(cases)} case(s): {shorten(cases, 20)}"
        for value in sorted(values & known):
            name = _names(table.labels, value)
            what = f"value {value} ({name}) belongs to no label annotated there; training ignores it."
            remedy = "Add the label to `annotated` if all cases of the source show it, or set these voxels to 0."
            findings.append(Finding("error", where, what, remedy))
        for value in sorted(values - known):
            what = f"value {value} is not in `labels`."
            findings.append(Finding("error", where, what, "Correct the label maps or `labels`."))
    return findings


def _names(labels: LabelSpace, value: int) -> str:
    return ", ".join(name for name, values in zip(labels.names, labels.values, strict=True) if value in values)


def check_unlabelled(table: SourceTable, contents: Iterable[CaseContent]) -> list[Finding]:
    """Find the ignore label in unlabelled cases, where nnU-Net's fingerprint would count it as foreground."""
    ignore = table.labels.ignore
    what = f"is unlabelled, but its map holds the ignore label ({ignore}); nnU-Net counts that as foreground."
    return [
        Finding("error", f"case '{content.case}'", what, "Write a map of zeros.")
        for content in contents
        if not table.known(content.case).any() and table.labels.ignore in content.values
    ]


def check_shown(table: SourceTable, contents: Collection[CaseContent]) -> list[Finding]:
    """Find maps without a labelled voxel among them all: nnU-Net's fingerprint needs intensities of labelled voxels."""
    foreground = {v for values in table.labels.values for v in values}
    if not contents or any(foreground & content.values for content in contents):
        return []
    what = "no label map shows any label: planning needs the intensities of labelled voxels, and fails."
    return [Finding("error", "labelsTr", what, "Annotate at least one case; thresholds can then be chosen on it too.")]


def check_names(table: SourceTable) -> list[Finding]:
    """Find labels whose names look like two spellings of one label, as a merge may leave them."""
    what, remedy = "differ only in spelling.", "If they are one label, merge again with --rename."
    return [
        Finding("warning", f"labels {' and '.join(map(repr, alike))}", what, remedy)
        for alike in similar_names(table.labels.names)
    ]


def check_absent(table: SourceTable, contents: Collection[CaseContent]) -> list[Finding]:
    """Find labels that a source declares annotated but that none of its cases shows, the most harmful mistake.

    For one or two cases it may well be true, so that is a warning, unless more cases, of all sources together, lack it.
    """
    seen = {table.source_of(content.case) for content in contents}
    counts, occurs = table.counts(), count_occurrences(table, contents)
    never, nowhere = (counts > 0) & (occurs == 0), (occurs.sum(0) == 0) & (counts.sum(0) > FEW)
    remedy = "Remove it from `annotated`, unless somebody looked for it in these cases and it is truly in none."
    findings = []
    for row, source in enumerate(table.sources):
        cases = len(table.cases_of(source))
        what = f"declared annotated, but in none of {cases} case(s): training learns that it is absent."
        for k in np.flatnonzero(never[row]) if source in seen else []:
            severity = "error" if cases > FEW or nowhere[k] else "warning"
            findings.append(Finding(severity, f"source '{source}', label '{table.labels.names[k]}'", what, remedy))
    return findings
