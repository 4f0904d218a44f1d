"""What people should know about an import: notes on single cases, and on all of them together."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_conemos.annotations.overview import similar_names
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.conversion.names import name_table
from nnunetv2_conemos.conversion.reading import CasesRead
from nnunetv2_conemos.conversion.scan import left_note
from nnunetv2_conemos.datasets.merge.report import duplicate_notes
from nnunetv2_conemos.datasets.orientations import describe_orientations
from nnunetv2_conemos.datasets.patients import repeats_in_words, undeclared_repeats
from nnunetv2_conemos.datasets.writer import CaseDigest
from nnunetv2_conemos.errors import shorten


def notes_of(read: CasesRead, table: SourceTable) -> list[str]:
    """Return all notes of an import; those that could hold names of patients are only counted in an anonymous one."""
    notes = [f"layout {read.found.layout.name if read.how.private else read.found.words}", read.channels_note]
    notes.append(left_note(read.found.left, read.how.private is not None))
    ignored = [use.name for use in read.found.names if use.outcome == "ignored"]
    unknown = [use.name for use in read.found.names if use.outcome == "unknown"]
    for what, names in (("ignored, as the table of labels says", ignored), ("unknown and left out", unknown)):
        if names:
            notes.append(f"{len(names)} name(s) {what}{'' if read.how.private else f': {shorten(names)}'}")
    notes += alike_notes(table.labels.names)
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


def alike_notes(labels: Sequence[str]) -> list[str]:
    """Return a note for each group of labels that could be one under several names."""
    known = name_table("tg263", [])
    groups: dict[str, list[str]] = {}
    for label in labels:
        if meant := known.label_of(label):
            groups.setdefault(meant, []).append(label)
    found = [group for group in groups.values() if len(group) > 1]
    found += [group for group in similar_names(labels) if not any({*group} <= {*other} for other in found)]
    return [f"{' and '.join(map(repr, group))}: the same label? If so, say it in --labels." for group in found]


def case_notes(read: CasesRead) -> list[str]:
    """Return what was noted on single cases."""
    return [f"case '{record.case}': {note}" for record in read.records for note in record.notes]
