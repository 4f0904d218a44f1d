"""Write what was planned: label maps, dataset.json, folds, report and origins; then everything appears at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_conemos.conversion.anonymise import lines_writer, messages_file
from nnunetv2_conemos.conversion.case_maps import CODES, RECORDS, is_native
from nnunetv2_conemos.conversion.notes import case_notes, notes_of
from nnunetv2_conemos.conversion.origins import ORIGINS, origins_of, origins_text
from nnunetv2_conemos.conversion.overlaps import Resolution
from nnunetv2_conemos.conversion.plan import ImportPlan
from nnunetv2_conemos.conversion.reading import CasesRead
from nnunetv2_conemos.conversion.report import FOLDER, ImportReport, names_text, write_report
from nnunetv2_conemos.conversion.write import discard_workings, write_labels
from nnunetv2_conemos.datasets.inspect import count_occurrences
from nnunetv2_conemos.datasets.splits import write_split
from nnunetv2_conemos.datasets.writer import CaseJob, dataset_entries
from nnunetv2_conemos.files import Writer, put_in_place, remove, write_json
from nnunetv2_conemos.parallel import in_processes


def write_dataset(target: Path, read: CasesRead, plan: ImportPlan, resolution: Resolution) -> ImportReport:
    """Write pass 2 of an import and put the dataset in its place."""
    folder, private = read.settings.folder, read.how.private
    jobs = [(record.case, folder, read.settings.ending, plan.values[record.case]) for record in read.records]
    in_processes(write_labels, jobs, read.how.processes, "Writing label maps")
    discard_workings(folder)
    notes = [*write_split(plan.table, folder), *notes_of(read, plan.table)]
    occurs = count_occurrences(plan.table, plan.contents())
    names = () if private else read.found.names
    report = ImportReport(target, plan.table, occurs, names, resolution.texts, tuple(notes))
    (folder / FOLDER).mkdir()
    words = read.found.layout.name if private else read.found.words
    write_report(report, folder / FOLDER, words)
    entries = {"dataset": dataset_entries(reference_jobs(read), read.settings.ending)}
    referenced = read.how.images == "reference" and private is None
    write_json(folder / "dataset.json", plan.dataset_json | (entries if referenced else {}))
    put_in_place(folder, target, keep_origins(read, folder / FOLDER, target))
    return report


def write_images(target: Path, read: CasesRead) -> None:
    """Put a folder of images to predict in its place."""
    folder = read.settings.folder
    for file in sorted((folder / "imagesTr").iterdir()):
        file.replace(folder / file.name)
    for name in (CODES, RECORDS, "imagesTr", "labelsTr"):
        remove(folder / name)
    put_in_place(folder, target, keep_origins(read, folder, target))


def keep_origins(read: CasesRead, folder: Path, target: Path) -> dict[Path, Writer]:
    """Write the table of origins into a folder, or return private files that say who is who and what was noted."""
    text, private = origins_text(origins_of((task.case, task.found) for task in read.tasks)), read.how.private
    if private is None:
        (folder / ORIGINS).write_text(text, encoding="utf-8")
        return {}
    lines = [*case_notes(read), *names_text(read.found.names).splitlines()]
    return {private: lines_writer([text.rstrip("\n")]), messages_file(target, private): lines_writer(lines)}


def reference_jobs(read: CasesRead) -> Sequence[CaseJob]:
    """Return jobs that say of each case where its images are: in their own place, or converted in the dataset."""
    settings, jobs = read.settings, []
    for task in read.tasks:
        native = is_native(task.found.images, settings)
        files = task.found.images if native else task.found.images[:1] * settings.channels
        ending = settings.ending if native else ""
        jobs.append(CaseJob(task.case, files, None, {}, ending, SimpleITKIO(), settings.channels))
    return jobs
