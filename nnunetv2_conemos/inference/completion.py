"""`conemos complete`: predict the labels that are missing in each training case; the result is a stock dataset.

Annotated labels stay as they are, voxel by voxel, and predictions of labels that a case is annotated for are not even
computed. The result has no `sources`: plain nnU-Net trains on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from rich.progress import Progress

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.tags import ARRAY_AXIS, slices_by_label
from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS, SHARED_KEYS
from nnunetv2_conemos.datasets.folders import require_new_dataset
from nnunetv2_conemos.datasets.label_maps import completion_table
from nnunetv2_conemos.datasets.writer import CaseJob, dataset_entries, input_files, write_seg
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.files import put_in_place, require_no_inputs_within, write_json
from nnunetv2_conemos.inference.model_folder import ModelFolder
from nnunetv2_conemos.inference.predictor import AT_ONCE, Inference, Labelling, plan_labelling, predict_files, queried
from nnunetv2_conemos.training.plans_facts import UNKNOWN

SETTINGS = "completion.json"


@dataclass(frozen=True)
class Completion(Labelling):
    """What is missing is filled in; `uncertain` P: ignore voxels of probability 0.5 - P to 0.5 + P."""

    uncertain: float | None

    @property
    def ignore(self) -> int | None:
        """The ignore value of the result, if it has one."""
        return self.table.labels.ignore if self.uncertain is None else self.ignore_value

    def modality(self, case: str) -> str | None:
        """What the model is told of a case: the modality that its source declares, if the model knows it."""
        if not self.model.modalities:
            return None
        declared = self.table.sources[self.table.source_of(case)].modality
        return declared if declared in self.model.modalities else UNKNOWN

    def missing(self, case: str) -> tuple[str, ...]:
        return tuple(name for name in self.table.labels.names if name not in self.table.annotated(case))

    def settings(self) -> dict[str, Any]:
        """What an unfinished completion must have in common with this one to be gone on with."""
        return {
            "model": str(self.model.folder.resolve()),
            "dataset": str(self.raw),
            **{key: self.dataset_json.get(key) for key in SHARED_KEYS},
            "folds": self.inference.folds,
            "checkpoint": self.inference.checkpoint,
            "trained weights": file_facts(
                self.model.folder / f"fold_{fold}" / self.inference.checkpoint for fold in self.inference.folds
            ),
            "cases": file_facts(input_files(self.jobs.values())),
            "mirroring": self.inference.mirroring,
            "uncertain": self.uncertain,
        }


def file_facts(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of files: another one tells that some of them changed."""
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return sha256(repr(facts).encode()).hexdigest()


def plan_completion(model: ModelFolder, inference: Inference, raw: Path, uncertain: float | None) -> Completion:
    """Raises SourceError where model and dataset do not fit, or nothing is missing, or a label was never taught."""
    labelling = plan_labelling(model, inference, raw)
    if "sources" not in labelling.dataset_json:
        raise SourceError(f"{raw} has no `sources`: every case is annotated for everything, nothing is missing.")
    if model.never_annotated:
        raise SourceError(
            f"the model was never taught {shorten(model.never_annotated)}: it cannot fill that in. Remove the label "
            "from the dataset, or annotate it in some cases."
        )
    return Completion(**vars(labelling), uncertain=uncertain)


def complete(completion: Completion, target: Path, overwrite: bool) -> dict[str, int]:
    """Write the completed dataset, going on with an unfinished one; returns label -> cases in which it was missing."""
    require_new_dataset(target, overwrite)
    require_no_inputs_within(target, input_files(completion.jobs.values()))
    folder = unfinished_folder(completion, target, overwrite)
    labels = folder / "labelsTr"
    todo: dict[tuple[tuple[str, ...], str | None], list[CaseJob]] = {}
    for case, job in completion.jobs.items():
        if not (labels / f"{case}{job.ending}").is_file():
            todo.setdefault((completion.missing(case), completion.modality(case)), []).append(job)
    with Progress() as progress:
        task = progress.add_task("Completing", total=len(completion.jobs))
        progress.advance(task, len(completion.jobs) - sum(map(len, todo.values())))
        for (missing, modality), jobs in todo.items():
            predictor = make_predictor(completion, missing, modality) if missing else None
            for start in range(0, len(jobs), AT_ONCE):
                batch = jobs[start : start + AT_ONCE]
                complete_batch(completion, predictor, batch, folder)
                progress.advance(task, len(batch))
    finish(completion, folder, target)
    names = completion.table.labels.names
    return {name: sum(name in completion.missing(case) for case in completion.jobs) for name in names}


def unfinished_folder(completion: Completion, target: Path, overwrite: bool) -> Path:
    """A folder beside the target, new or of an interrupted run with the same settings; SourceError for others."""
    folder = target.with_name(f".{target.name}.completing")
    settings = completion.settings()
    if (folder / SETTINGS).is_file() and not overwrite:
        theirs = json.loads((folder / SETTINGS).read_text())
        different = [key for key in settings if settings[key] != theirs.get(key)]
        if different:
            raise SourceError(
                f"{folder} was begun with other settings ({shorten(different)}). Go on with those, or say --overwrite "
                "to begin anew."
            )
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "labelsTr").mkdir(parents=True)
    write_json(folder / SETTINGS, settings)
    return folder


def make_predictor(completion: Completion, missing: Sequence[str], modality: str | None) -> nnUNetPredictor:
    """nnU-Net's predictor with a network that answers only what is missing, in images of a modality."""
    how = completion.inference
    predictor = nnUNetPredictor(use_mirroring=how.mirroring, device=torch.device(how.device), allow_tqdm=False)
    with queried(missing, modality):
        folds: Any = tuple(how.folds)
        predictor.initialize_from_trained_model_folder(str(completion.model.folder), folds, how.checkpoint)
    return predictor


def complete_batch(
    completion: Completion, predictor: nnUNetPredictor | None, jobs: Sequence[CaseJob], folder: Path
) -> None:
    """Predict some cases with the same missing labels, and put their completed maps in place; None: nothing missing."""
    scratch, how = folder / "scratch", completion.inference
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if predictor is not None:
        images = [[str(file) for file in job.images] for job in jobs]
        outputs = [str(scratch / job.case) for job in jobs]
        probabilities = completion.uncertain is not None
        predict_files(predictor, how, images, outputs, probabilities)
    for job in jobs:
        completed, grid = completed_map(completion, job, scratch)
        file = scratch / f"completed{job.ending}"
        write_seg(job.reader, completed, file, grid)
        file.replace(folder / "labelsTr" / f"{job.case}{job.ending}")
    shutil.rmtree(scratch)


def completed_map(completion: Completion, job: CaseJob, scratch: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Label map [*S]: what is annotated and, where that leaves it open, what was predicted; and its geometry."""
    labels, missing = completion.table.labels, completion.missing(job.case)
    data, grid = job.reader.read_seg(str(job.label))
    mine = data[0].astype(np.intp)
    values = {0, labels.ignore or 0, *(value for its_values in labels.values for value in its_values)}
    if strange := set(np.unique(mine).tolist()) - values:
        raise SourceError(f"case '{job.case}': {job.label} holds the value {min(strange)}, which stands in no label.")
    predicted = mine
    if missing:
        predicted = job.reader.read_seg(str(scratch / f"{job.case}{job.ending}"))[0][0].astype(np.intp)
    completed, left_open = np.zeros(mine.shape, dtype=np.uint16), np.zeros(mine.shape, dtype=bool)
    axis, groups = absent_labels(completion.table, job.case, mine.shape)
    for absent, slices in groups.items():
        table, is_open = completion_table(labels, [*completion.table.annotated(job.case), *absent])
        here = (*(slice(None),) * axis, slices)
        completed[here], left_open[here] = table[mine[here], predicted[here]], is_open[mine[here]]
    if missing and completion.uncertain is not None:
        with np.load(scratch / f"{job.case}.npz") as saved:
            columns = [labels.names.index(name) for name in missing]
            unsure = is_unsure(saved["probabilities"], columns, labels.has_regions, completion.uncertain)
        completed[unsure & left_open] = completion.ignore_value
    return completed, grid


def absent_labels(
    table: SourceTable, case: str, shape: tuple[int, ...]
) -> tuple[int, dict[tuple[str, ...], list[int]]]:
    """Labels that image tags say are absent -> the slices they are absent from; and the axis of these slices."""
    axis = ARRAY_AXIS[table.tag_axis]
    absent: list[tuple[str, ...]] = [()] * shape[axis]
    for name, (present, known) in slices_by_label(table.tags(case), shape[axis], case).items():
        absent = [(*names, name) if gone else names for names, gone in zip(absent, known & ~present, strict=True)]
    return axis, {names: [n for n, other in enumerate(absent) if other == names] for names in dict.fromkeys(absent)}


def is_unsure(saved: np.ndarray, missing: list[int], has_regions: bool, margin: float) -> Any:
    """Boolean [*S]: a probability within `margin` of one half, from what nnU-Net saves.

    Region mode: sigmoids [K,*S]; any of the missing regions. Label mode: a softmax [K+1,*S]; the likeliest of the
    missing labels against background, because that is what decides.
    """
    if has_regions:
        return (abs(saved[missing] - 0.5) <= margin).any(0)
    likeliest = saved[1:][missing].max(0)
    against_background = likeliest / np.maximum(likeliest + saved[0], np.finfo(saved.dtype).tiny)
    return abs(against_background - 0.5) <= margin


def finish(completion: Completion, folder: Path, target: Path) -> None:
    """Write what nnU-Net needs beside the maps, and give the folder its name."""
    labels = dict(completion.dataset_json["labels"])
    if completion.ignore is not None:
        labels["ignore"] = completion.ignore
    result = {key: value for key, value in completion.dataset_json.items() if key not in OWN_KEYS}
    result |= {"labels": labels, "dataset": dataset_entries(list(completion.jobs.values()), result["file_ending"])}
    write_json(folder / "dataset.json", result)
    splits = completion.raw / "splits_final.json"
    if splits.is_file():
        shutil.copyfile(splits, folder / splits.name)
    put_in_place(folder, target)
