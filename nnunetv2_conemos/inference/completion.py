"""Predict the labels that are missing in each training case; the result is a stock dataset.

Annotated labels stay as they are, voxel by voxel, and predictions of labels that a case is annotated for are not even
computed. The result has no `sources`: plain nnU-Net trains on it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.progress import Progress

from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS, SHARED_KEYS
from nnunetv2_conemos.datasets.folders import new_dataset_folder, require_new_dataset
from nnunetv2_conemos.datasets.splits import SPLITS, Fold, read_splits, stratified_split
from nnunetv2_conemos.datasets.volumes import write_label_map
from nnunetv2_conemos.datasets.writer import CaseJob, dataset_entries, input_files
from nnunetv2_conemos.errors import InputError, SourceError, shorten
from nnunetv2_conemos.files import exclusive, put_in_place, require_absent, require_no_inputs_within, write_json
from nnunetv2_conemos.inference.completed_map import completed_map
from nnunetv2_conemos.inference.labelling import AT_ONCE, Labelling, plan_labelling
from nnunetv2_conemos.inference.predictor import Inference, make_predictor, predict_files, require_options
from nnunetv2_conemos.inference.streaming import StreamingPredictor
from nnunetv2_conemos.networks.spec import UNKNOWN
from nnunetv2_conemos.text_files import read_object

SETTINGS = "completion.json"
FOLDS = 5


@dataclass(frozen=True)
class Completed:
    """A completed dataset: its raw folder, how many cases it has, and label -> cases in which it was filled in."""

    folder: Path
    cases: int
    filled_in: dict[str, int]


def complete(
    model: Path | str,
    dataset: Path | str,
    output: str,
    *,
    uncertain: float | None = None,
    inference: Inference | None = None,
    overwrite: bool = False,
) -> Completed:
    """Write a copy of a partially labelled raw dataset in which a model has filled in the missing labels.

    `model` is the folder of a trained model, `dataset` an id, name or path, `output` the name of the new dataset
    (Dataset101_Name) or a path that ends in it. `uncertain` P: write the ignore label where a probability lies within P
    of one half. An interrupted run is resumed; `overwrite` starts over and replaces an existing dataset.
    Raises SourceError where model and dataset do not fit, nothing is missing, or a label was never annotated, and
    FileExistsError where the dataset exists.
    """
    if uncertain is not None and not 0 < uncertain < 0.5:
        raise InputError(f"uncertain {uncertain:g}: expected a number between 0 and 0.5.")
    require_options(inference or Inference(), streams=uncertain is None)
    completion = plan_completion(plan_labelling(model, dataset, inference), uncertain)
    folds_of(completion)  # an error in it is found now
    target = new_dataset_folder(output)
    require_new_dataset(target, overwrite)
    require_no_inputs_within(target, input_files(completion.jobs.values()))
    with exclusive(target):
        require_absent(target, overwrite)
        folder = unfinished_folder(completion, target, overwrite)
        fill_in(completion, folder)
        finish(completion, folder, target)
    names = completion.table.labels.names
    filled_in = {name: sum(name in completion.missing(case) for case in completion.jobs) for name in names}
    return Completed(target, len(completion.jobs), filled_in)


@dataclass(frozen=True)
class Completion(Labelling):
    """A labelling in which missing labels are filled in; `uncertain` P: ignore probabilities 0.5 - P to 0.5 + P."""

    uncertain: float | None

    @property
    def ignore(self) -> int | None:
        """The ignore value of the result, if it has one."""
        return self.table.labels.ignore if self.uncertain is None else self.ignore_value

    def modality(self, case: str) -> str | None:
        """Return the modality that the model is conditioned on: that of the source of a case, if the model knows it."""
        if not self.model.modalities:
            return None
        declared = self.table.sources[self.table.source_of(case)].modality
        return declared if declared in self.model.modalities else UNKNOWN

    def missing(self, case: str) -> tuple[str, ...]:
        """Return the labels that a case is not annotated for."""
        return tuple(name for name in self.table.labels.names if name not in self.table.annotated(case))

    def settings(self) -> dict[str, Any]:
        """Return the settings that an unfinished completion must share with this one to be resumed."""
        how = self.inference
        checkpoints = [self.model.folder / f"fold_{fold}" / how.checkpoint for fold in how.folds or ()]
        return {
            "model": str(self.model.folder.resolve()),
            "dataset": str(self.raw),
            **{key: self.dataset_json.get(key) for key in SHARED_KEYS},
            "folds": how.folds,
            "checkpoint": how.checkpoint,
            "trained weights": file_facts(checkpoints),
            "cases": file_facts(input_files(self.jobs.values())),
            "mirroring": how.mirroring,
            "skip absent": how.skip_absent,
            "uncertain": self.uncertain,
        }


def file_facts(files: Iterable[Path]) -> str:
    """Return a hash of the names, sizes and times of files, so that any change is detected."""
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(facts).encode()).hexdigest()


def plan_completion(labelling: Labelling, uncertain: float | None) -> Completion:
    """Return the plan of a completion; raises SourceError where nothing is missing, or a label was never annotated."""
    if "sources" not in labelling.dataset_json:
        raise SourceError(f"{labelling.raw} has no `sources`: every case is fully annotated, nothing is missing.")
    never_annotated = labelling.model.never_annotated
    if never_annotated:
        raise SourceError(
            f"no training case of the model was annotated for {shorten(never_annotated)}: it cannot fill that in. "
            "Remove the label from the dataset, or annotate it in some cases."
        )
    return Completion(**vars(labelling), uncertain=uncertain)


def unfinished_folder(completion: Completion, target: Path, overwrite: bool) -> Path:
    """Return a folder beside the target, new or of an interrupted run; raises SourceError for other settings."""
    folder = target.with_name(f".{target.name}.completing")
    settings = completion.settings()
    if (folder / SETTINGS).is_file() and not overwrite:
        theirs = read_object(folder / SETTINGS)
        different = [key for key in settings if settings[key] != theirs.get(key)]
        if different:
            raise SourceError(
                f"{folder} was begun with other settings ({shorten(different)}). Use those, or pass --overwrite to "
                "start over."
            )
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "labelsTr").mkdir(parents=True)
    write_json(folder / SETTINGS, settings)
    return folder


def fill_in(completion: Completion, folder: Path) -> None:
    """Write the completed maps that do not exist yet, in batches with the same missing labels and modality."""
    todo: dict[tuple[tuple[str, ...], str | None], list[CaseJob]] = {}
    for case, job in completion.jobs.items():
        if not (folder / "labelsTr" / f"{case}{job.ending}").is_file():
            todo.setdefault((completion.missing(case), completion.modality(case)), []).append(job)
    with Progress() as progress:
        task = progress.add_task("Completing", total=len(completion.jobs))
        progress.advance(task, len(completion.jobs) - sum(map(len, todo.values())))
        for (missing, modality), jobs in todo.items():
            predictor = make_predictor(completion.model, completion.inference, missing, modality) if missing else None
            for start in range(0, len(jobs), AT_ONCE):
                batch = jobs[start : start + AT_ONCE]
                complete_batch(completion, predictor, batch, folder)
                progress.advance(task, len(batch))


def complete_batch(
    completion: Completion, predictor: StreamingPredictor | None, jobs: Sequence[CaseJob], folder: Path
) -> None:
    """Predict some cases with the same missing labels, and write their completed maps; None: nothing is missing."""
    scratch, uncertain = folder / "scratch", completion.uncertain
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if predictor is not None:
        outputs = [scratch / job.case for job in jobs]
        images = [job.images for job in jobs]
        predict_files(predictor, completion.inference, images, outputs, probabilities=uncertain is not None)
    for job in jobs:
        missing = completion.missing(job.case)
        completed, grid = completed_map(completion.table, job, missing, scratch, uncertain, completion.ignore_value)
        file = scratch / f"completed{job.ending}"
        write_label_map(completed, file, job.reader, grid)
        file.replace(folder / "labelsTr" / f"{job.case}{job.ending}")
    shutil.rmtree(scratch)


def folds_of(completion: Completion) -> list[Fold] | None:
    """Return the folds of the raw dataset, or new ones where patients have to stay together; None: nnU-Net's will do.

    Raises SourceError for a splits_final.json that is wrong.
    """
    table, file = completion.table, completion.raw / SPLITS
    if file.is_file():
        return read_splits(file, table)
    patients = len({table.patient_of(case) for case in table.cases if table.known(case).any()})
    return stratified_split(table, min(FOLDS, patients)) if table.patients and patients > 1 else None


def finish(completion: Completion, folder: Path, target: Path) -> None:
    """Write what nnU-Net needs beside the maps, and rename the folder to `target`."""
    labels = dict(completion.dataset_json["labels"])
    if completion.ignore is not None:
        labels["ignore"] = completion.ignore
    result = {key: value for key, value in completion.dataset_json.items() if key not in OWN_KEYS}
    result |= {"labels": labels, "dataset": dataset_entries(list(completion.jobs.values()), result["file_ending"])}
    write_json(folder / "dataset.json", result)
    if folds := folds_of(completion):
        write_json(folder / SPLITS, folds)
    put_in_place(folder, target, {})
