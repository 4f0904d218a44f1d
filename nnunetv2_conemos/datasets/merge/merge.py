"""Merge several raw datasets, each annotated for other labels, into one with `sources`.

Labels are joined by name. The result is written under a temporary name and renamed at the end; inputs are only read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nnunetv2_conemos.datasets.folders import new_dataset_folder, require_new_dataset
from nnunetv2_conemos.datasets.inspect import CaseContent, count_occurrences
from nnunetv2_conemos.datasets.merge.labels import unify_labels
from nnunetv2_conemos.datasets.merge.load import read_datasets
from nnunetv2_conemos.datasets.merge.plan import Plan, plan_merge
from nnunetv2_conemos.datasets.merge.report import (
    MergeReport,
    duplicate_notes,
    orientation_notes,
    patient_notes,
    unannotated_notes,
    write_report,
)
from nnunetv2_conemos.datasets.merge.spec import DatasetSpec, Recipe, absolute, checked_recipe, recipe_text
from nnunetv2_conemos.datasets.splits import write_split
from nnunetv2_conemos.datasets.writer import Images, input_files, write_cases
from nnunetv2_conemos.files import new_folder, require_no_inputs_within, write_json

RECIPE = "merge_recipe.yaml"


def merge(
    datasets: Recipe | Sequence[str | int | Path | DatasetSpec],
    output: str | Path,
    *,
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] | None = None,
    keep_apart: Sequence[str] | None = None,
    channels: Mapping[str, str] | None = None,
    images: Images | None = None,
    file_ending: str | None = None,
    orientation: str | None = None,
    processes: int = 1,
    overwrite: bool = False,
) -> MergeReport:
    """Merge raw datasets into one that says which labels each case is annotated for; it appears whole or not at all.

    Args:
        datasets: ids, names or paths of raw datasets, records with options of their own, or a whole recipe.
        output: name or path of the new dataset, `Dataset100_Name`.
        rename: label -> merged name, in every dataset that has the label. This and the next six options replace what
            a recipe says.
        drop: labels to leave out.
        keep_apart: labels that stay one per dataset, where definitions differ.
        channels: channel name -> merged name.
        images: how images are kept: `reference` (the default), `link` or `copy`.
        file_ending: of the result; default: the most frequent one.
        orientation: of all images and label maps of the result, such as LPS; nothing is resampled. Default: as stored.
        processes: how many read and write cases; more than one requires a script with `if __name__ == "__main__":`.
        overwrite: replace an existing dataset of that name.

    Raises SourceError or ValueError where the datasets do not fit together, OSError for files that are missing, cannot
    be read, or exist.
    """
    options = {
        "rename": rename, "drop": drop, "keep_apart": keep_apart,
        "channels": channels, "images": images, "file_ending": file_ending, "orientation": orientation,
    }  # fmt: skip
    recipe, target = recipe_of(datasets, options), new_dataset_folder(output)
    sources = read_datasets(recipe)
    labels = unify_labels(sources)
    plan = plan_merge(sources, labels, recipe)
    return write_merge(plan, recipe, target, processes, overwrite)


def recipe_of(
    datasets: Recipe | Sequence[str | int | Path | DatasetSpec], options: Mapping[str, object | None]
) -> Recipe:
    """Return a recipe with these options; raises ValueError for options of the wrong form."""
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(datasets, Recipe):
        return checked_recipe({**datasets.model_dump(), **given}, "merge") if given else datasets
    specs = [spec if isinstance(spec, DatasetSpec) else DatasetSpec(dataset=str(spec)) for spec in datasets]
    return absolute(checked_recipe({"datasets": specs, **given}, "merge"))


def write_merge(plan: Plan, recipe: Recipe, target: Path, processes: int, overwrite: bool) -> MergeReport:
    """Write the merged dataset with its folds, report and recipe."""
    require_no_inputs_within(target, input_files(plan.jobs))
    require_new_dataset(target, overwrite)
    with new_folder(target, overwrite) as folder:
        ending = plan.dataset_json["file_ending"]
        found = write_cases(plan.jobs, folder, ending, recipe.images, processes, "Writing cases", recipe.orientation)
        notes = [*write_split(plan.table, folder), *plan.notes, *duplicate_notes(found)]
        notes += [*unannotated_notes(plan.datasets, found), *patient_notes(plan.datasets)]
        notes += [] if recipe.orientation else orientation_notes(plan.dataset_json, found)
        written = [CaseContent(job.case, frozenset(job.values[v] for v in found[job.case].values)) for job in plan.jobs]
        report = MergeReport(target, plan.table, count_occurrences(plan.table, written), notes, plan.datasets)
        write_report(report, folder)
        (folder / RECIPE).write_text(recipe_text(recipe))
        write_json(folder / "dataset.json", plan.dataset_json)
    return report
