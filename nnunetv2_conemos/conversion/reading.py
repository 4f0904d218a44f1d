"""Pass 1 for all cases of a scan, on all cores: what was read, and the problems of all cases at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from nnunetv2_conemos.annotations.table_file import read_table
from nnunetv2_conemos.conversion.anonymise import Identities
from nnunetv2_conemos.conversion.case_maps import CaseRecord, CaseSettings, CaseTask, Empty, read_case
from nnunetv2_conemos.conversion.problems import require_none
from nnunetv2_conemos.conversion.scan import Scan, channels_of, ending_for, tasks_of
from nnunetv2_conemos.conversion.write import discard_others, unfinished_folder
from nnunetv2_conemos.datasets.writer import Images
from nnunetv2_conemos.errors import InputError, did_you_mean
from nnunetv2_conemos.files import require_no_inputs_within
from nnunetv2_conemos.parallel import in_processes


class How(NamedTuple):
    """How cases are read and written; `private` is the table that says who is who (None: cases keep their names)."""

    images: Images
    resample: bool
    empty: Empty
    channels: Sequence[str] | None
    private: Path | None
    processes: int


class CasesRead(NamedTuple):
    """The cases of a scan after pass 1: tasks and records in the same order, and the names of the channels."""

    found: Scan
    how: How
    identities: Identities
    settings: CaseSettings
    tasks: list[CaseTask]
    records: list[CaseRecord]
    channels: list[str]
    channels_note: str

    @property
    def patients(self) -> dict[str, str]:
        """Case -> patient, under the names of the result, where the patient is known."""
        return {task.case: self.identities.patient[task.found.patient] for task in self.tasks if task.found.patient}


def read_cases(found: Scan, how: How, target: Path) -> CasesRead:
    """Read all cases into the unfinished folder beside the target; raises ImportProblemsError for all that is wrong."""
    require_no_inputs_within(target, (file for case in found.cases for file in case.images))
    identities = Identities(found.cases, how.private is not None)
    tasks = tasks_of(found, identities)
    channels, note = channels_of(found.cases, how.channels)
    folder, ending = unfinished_folder(target), ending_for(found.cases)
    settings = CaseSettings(
        found.layout, folder, ending, how.images, len(channels), how.resample, how.empty, how.private is not None
    )
    discard_others(folder, [task.case for task in tasks], ending, len(channels))
    records = in_processes(read_case, [(task, settings) for task in tasks], how.processes, "Reading cases")
    require_none([f"case '{record.case}': {record.problem}" for record in records if record.problem])
    return CasesRead(found, how, identities, settings, tasks, records, channels, note)


def absent_labels(absent: Path | Mapping[str, Sequence[str]] | None, read: CasesRead) -> dict[str, list[str]]:
    """Return case -> labels that were looked for and are absent, under the names of the result.

    Raises InputError for a label that the table of names does not know, or a case that was not found.
    """
    given = read_table(absent, "--absent").annotated if isinstance(absent, Path) else absent or {}
    known, cases = read.found.table, read.identities.case
    problems, found = [], {}
    for case, labels in given.items():
        meant = [known.label_of(label) for label in labels]
        problems += [
            f"'{label}' of case '{case}' is no label.{did_you_mean(label, known.labels)}"
            for label, own in zip(labels, meant, strict=True)
            if own not in known.labels
        ]
        if case not in cases:
            problems.append(f"case '{case}' was not found.{did_you_mean(case, cases)}")
        found[cases.get(case, case)] = [label for label in meant if label in known.labels]
    if problems:
        raise InputError(f"--absent: {' '.join(problems[:8])} Correct the list.")
    return found
