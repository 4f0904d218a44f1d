"""What people should know about an import: notes on single cases, and on all of them together."""

from __future__ import annotations

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.conversion.reading import CasesRead
from nnunetv2_conemos.datasets.merge.report import duplicate_notes
from nnunetv2_conemos.datasets.orientations import describe_orientations
from nnunetv2_conemos.datasets.patients import repeats_in_words, undeclared_repeats
from nnunetv2_conemos.datasets.writer import CaseDigest
from nnunetv2_conemos.errors import shorten


def notes_of(read: CasesRead, table: SourceTable) -> list[str]:
    """Return all notes of an import; those that could hold names of patients are only counted in an anonymous one."""
    notes = [f"layout {read.found.layout.name if read.how.private else read.found.words}", read.channels_note]
    ignored = [use.name for use in read.found.names if use.outcome == "ignored"]
    unknown = [use.name for use in read.found.names if use.outcome == "unknown"]
    for what, names in (("ignored, as the table of labels says", ignored), ("unknown and left out", unknown)):
        if names:
            notes.append(f"{len(names)} name(s) {what}{'' if read.how.private else f': {shorten(names)}'}")
    unlabelled = [case for case in table.cases if not table.known(case).any()]
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} case(s) have nothing annotated and are kept as unlabelled: {shorten(unlabelled)}"
        )
    digests = {record.case: CaseDigest(frozenset(), record.image, record.orientation) for record in read.records}
    notes += duplicate_notes(digests)
    if what := describe_orientations({record.case: record.orientation for record in read.records}):
        notes.append(
            f"{what}. nnU-Net works on voxels as stored: bring them to one with conemos merge --orientation LPS."
        )
    if groups := undeclared_repeats(table):
        notes.append(f"{repeats_in_words(groups)}; name {{patient}} in the patterns, or no fold keeps them together")
    own = case_notes(read)
    if read.how.private and own:
        own = [f"{len(own)} note(s) on single cases in the private messages file"]
    return [note for note in (*notes, *own) if note]


def case_notes(read: CasesRead) -> list[str]:
    """Return what was noted on single cases."""
    return [f"case '{record.case}': {note}" for record in read.records for note in record.notes]
