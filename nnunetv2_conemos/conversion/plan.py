"""What an import will write: labels and their values, who annotated what, and the value of each code of each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import PATIENT, group_sources
from nnunetv2_conemos.conversion.case_maps import CaseRecord
from nnunetv2_conemos.conversion.overlaps import Resolution
from nnunetv2_conemos.conversion.reading import CasesRead
from nnunetv2_conemos.datasets.inspect import CaseContent
from nnunetv2_conemos.datasets.label_maps import NOTHING, Signature, label_entries, shown
from nnunetv2_conemos.errors import InputError, shorten


@dataclass(frozen=True)
class ImportPlan:
    """A dataset before its label maps are written: its dataset.json, who annotated what, case -> code -> value."""

    dataset_json: dict[str, Any]
    table: SourceTable
    values: Mapping[str, Sequence[int]]

    def contents(self) -> list[CaseContent]:
        """Return the values that each map will hold."""
        return [CaseContent(case, frozenset(values)) for case, values in self.values.items()]


def with_absent(records: Sequence[CaseRecord], absent: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return case -> the labels known in it: those annotated, and those that a list says were looked for and absent.

    Raises InputError for a case that was not found, and for labels that the list calls absent and the files show.
    """
    known = {record.case: record.annotated for record in records}
    problems = [f"case '{case}' was not found" for case in absent if case not in known]
    for record in records:
        there = {label for code, n in zip(record.codes, record.voxels, strict=True) if n for label in code}
        if wrong := [label for label in absent.get(record.case, ()) if label in there]:
            problems.append(f"case '{record.case}' shows {shorten(wrong)}")
        known[record.case] = tuple(dict.fromkeys([*record.annotated, *absent.get(record.case, ())]))
    if problems:
        raise InputError(
            f"--absent: expected labels that are absent from cases: {shorten(problems)}. Correct the list."
        )
    return known


def plan_import(read: CasesRead, known: Mapping[str, Sequence[str]], resolution: Resolution) -> ImportPlan:
    """Plan the dataset of cases that were read, in the order of labels of their table.

    Raises InputError where no label is annotated at all.
    """
    labels = [label for label in read.found.table.labels if any(label in own for own in known.values())]
    if not labels:
        raise InputError("nothing is annotated in any case. Name masks that hold voxels, or pass --images-only.")
    wholes = [resolution.whole(label) & frozenset(labels) for label in labels]
    entries, class_order = label_entries(labels, wholes)
    dataset_json: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(read.channels)},
        "labels": entries,
        "numTraining": len(read.records),
        "file_ending": read.settings.ending,
    }
    if class_order:
        dataset_json["regions_class_order"] = class_order
    traits = {case: {PATIENT: patient} for case, patient in read.patients.items()}
    space = LabelSpace.from_dataset_json(dataset_json)
    dataset_json["sources"] = group_sources({case: list(own) for case, own in known.items()}, space, traits=traits)
    table = SourceTable.from_dataset_json(dataset_json, known)
    value_of: dict[Signature, int] = {NOTHING: 0, **{whole: value for value, whole in enumerate(wholes, 1)}}
    values = {
        record.case: [shown(resolution.resolved(code), known[record.case], value_of) for code in record.codes]
        for record in read.records
    }
    return ImportPlan(dataset_json, table, values)
