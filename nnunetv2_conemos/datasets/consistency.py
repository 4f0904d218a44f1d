"""What `conemos check` finds about copies, splits and patients: where training would use other data than it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.copies import (
    Copies,
    changed_since,
    copied_map,
    find_copies,
    last_written,
    other_cases,
    prepared_configurations,
    stale_cases,
    stale_maps,
)
from nnunetv2_conemos.datasets.folders import preprocessed_folder, require_same_tables
from nnunetv2_conemos.datasets.patients import repeats_in_words, undeclared_repeats
from nnunetv2_conemos.datasets.splits import SPLITS, Fold, read_splits, require_same_splits
from nnunetv2_conemos.errors import FileError, Finding, SourceError, shorten

FAIR_SHARE = 0.5  # of the cases; where datasets drawn equally often are worth fewer, small ones fill the training
COMPARED = 8  # cases of a configuration that are preprocessed again, the latest changed first
NO_TRAINING = "Until then, training does not start."


def check_copies(name: str, processes: int = 1) -> list[Finding]:
    """Find differences between the raw and the preprocessed copy of a dataset."""
    findings = []
    try:
        require_same_tables(name)
    except SourceError as error:
        findings.append(Finding("error", "dataset.json", str(error), NO_TRAINING))
    copies = find_copies(name)
    if copies is None:
        return findings
    findings += [Finding("error", "gt_segmentations", problem, copies.remedy) for problem in stale_maps(copies)]
    prepared = prepared_configurations(copies.preprocessed)
    lacking = [case for case in copies.files if not copied_map(copies, case).is_file()]
    if lacking and prepared:
        what = f"lacks the label map of {shorten(lacking)}: preprocessing was interrupted, or before these were added."
        findings.append(Finding("warning", "gt_segmentations", what, copies.remedy))
    for each in prepared:
        if problem := other_cases(copies, each):
            findings.append(Finding("error", "preprocessed cases", problem, copies.remedy))
        latest = changed_since(copies, each)[:COMPARED]
        try:
            stale = list(stale_cases(copies, each, latest, processes))
        except FileError as error:
            stale = [str(error)]
        findings += [Finding("error", "preprocessed cases", problem, copies.remedy) for problem in stale]
        others = [case for case in changed_since(copies, each, last_written) if case not in latest]
        if others and not stale:
            findings.append(uncompared(copies, each.folder, others))
    return findings


def uncompared(copies: Copies, folder: Path, cases: list[str]) -> Finding:
    """Return a warning about files that look changed, beside the latest ones, which were compared."""
    what = (
        f"{len(cases)} further case(s) have files that were written after they were preprocessed, or copied: "
        f"{shorten(cases)}. The latest {COMPARED} were compared, and have not changed."
    )
    return Finding("warning", str(folder), what, f"If an image was changed: {copies.remedy}")


def check_splits(name: str, raw: Path, table: SourceTable) -> list[Finding]:
    """Find what is wrong with the splits_final.json of the raw and of the preprocessed dataset."""
    preprocessed = preprocessed_folder(name)
    folders = [folder for folder in (raw, preprocessed) if folder is not None]
    findings, read = [], dict[Path, list[Fold]]()
    for file in (folder / SPLITS for folder in folders if (folder / SPLITS).is_file()):
        try:
            read[file] = read_splits(file, table)
        except SourceError as error:
            findings.append(Finding("error", SPLITS, str(error), NO_TRAINING))
    if preprocessed is not None and not findings:
        try:
            require_same_splits(raw / SPLITS, preprocessed / SPLITS, table)
        except SourceError as error:
            findings.append(Finding("error", SPLITS, str(error), NO_TRAINING))
    return [*findings, *(finding for file, folds in read.items() for finding in unused_cases(file, folds, table))]


def unused_cases(file: Path, folds: list[Fold], table: SourceTable) -> Iterator[Finding]:
    """Yield a warning about the cases that are in no fold."""
    used = {case for fold in folds for part in ("train", "val") for case in fold[part]}
    if unused := [case for case in table.cases if case not in used]:
        what = f"{len(unused)} case(s) are in no fold, so they are never used: {shorten(unused)}."
        yield Finding("warning", str(file), what, "Add them to the file, or delete it: training writes a new one.")


def check_patients(table: SourceTable) -> list[Finding]:
    """Find cases that look like several of one patient, of which `sources` say nothing."""
    groups = undeclared_repeats(table)
    what = f"{repeats_in_words(groups)}, and `sources` name no `patient`: one may train while another validates."
    remedy = "Name the patients in `sources` (`conemos declare`: a column `patient`); splits keep them together."
    return [Finding("warning", "patients", what, remedy)] if groups else []


def check_datasets(table: SourceTable) -> list[Finding]:
    """Find sources that name no `dataset` and are so unequal that a few cases fill trainings that draw datasets.

    Drawn equally often, D datasets of n cases each are worth D^2 / sum(1 / n) cases (the effective sample size).
    """
    annotated = [case for case in table.cases if table.known(case).any()]
    sizes = Counter(map(table.dataset_of, annotated))
    unnamed = [name for name in sizes if name in table.sources and table.sources[name].dataset is None]
    worth = len(sizes) ** 2 / sum(1 / number for number in sizes.values()) if sizes else 0
    if len(unnamed) < 2 or worth >= FAIR_SHARE * len(annotated):
        return []
    what = (
        f"{len(unnamed)} sources name no `dataset`, so each is one of its own: {shorten(unnamed)}. Trainers that draw "
        f"datasets equally often (HermesTrainer) train as if {worth:.0f} of the {len(annotated)} annotated cases were "
        "there; others draw small sources too often."
    )
    remedy = 'Give the sources that are parts of one dataset the same name ("dataset": "NAME").'
    return [Finding("warning", "dataset.json, `sources`", what, remedy)]
