"""Annotate the tagged cases with a model that learnt from image tags, where it is confident.

The result is a raw dataset in which these cases have pseudo-labels, in sources of their own marked as `pseudo`. Cases
with label maps stay as they are.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunetv2_conemos.annotations.tags import without_tags
from nnunetv2_conemos.datasets.folders import new_dataset_folder, preprocessed_folder, require_new_dataset
from nnunetv2_conemos.datasets.splits import SPLITS, Fold, only_training, read_splits, stratified_split
from nnunetv2_conemos.datasets.volumes import read_label_map, write_label_map
from nnunetv2_conemos.datasets.writer import dataset_entries, input_files
from nnunetv2_conemos.errors import InputError, SourceError, shorten
from nnunetv2_conemos.files import new_folder, require_no_inputs_within, write_json
from nnunetv2_conemos.inference.labelling import AT_ONCE, Labelling, plan_labelling
from nnunetv2_conemos.inference.model_folder import read_checkpoint
from nnunetv2_conemos.inference.predictor import Inference, make_predictor, predict_files, require_options
from nnunetv2_conemos.methods.cmer.pseudo_labels import Annotation, found_slices, pseudo_map
from nnunetv2_conemos.parallel import progress_bar

PSEUDO = "pseudo"  # in the names of sources whose label maps were predicted
FOLDS = 5


@dataclass(frozen=True)
class AnnotatedFromTags:
    """A dataset with pseudo-labels: its raw folder, the number of cases that the model annotated, and statistics.

    `slices`: label -> slices that are tagged with it, and those of them in which it was annotated. `has_folds`: whether
    there are enough other cases for folds in which they validate.
    """

    folder: Path
    cases: int
    slices: dict[str, tuple[int, int]]
    has_folds: bool


def annotate_from_tags(
    model: Path | str,
    dataset: Path | str,
    output: str,
    *,
    margin: float = 0.1,
    background: float = 0.2,
    inference: Inference | None = None,
    overwrite: bool = False,
) -> AnnotatedFromTags:
    """Write a copy of a raw dataset in which a model that learnt from image tags has annotated the tagged cases.

    `model` is the folder of a model of CMERTrainer, `dataset` an id, name or path, `output` the name of the new dataset
    (Dataset101_Name) or a path that ends in it. A voxel is a label from `margin` above its threshold, and background
    below the activation `background`; in between, it is ignored. Raises SourceError where the model did not learn from
    tags or does not fit the dataset, or nothing is tagged, and FileExistsError where the dataset exists.
    """
    if not 0 <= margin < 0.5:
        raise InputError(f"margin {margin:g}: expected a number from 0 to below 0.5.")
    if not 0 <= background <= 1:
        raise InputError(f"background {background:g}: expected a number from 0 to 1.")
    require_options(inference or Inference(), streams=False)
    target = new_dataset_folder(output)
    require_new_dataset(target, overwrite)
    annotation = plan_annotation(plan_labelling(model, dataset, inference), margin, background)
    require_no_inputs_within(target, input_files(annotation.jobs.values()))
    with new_folder(target, overwrite) as folder:
        (folder / "labelsTr").mkdir()
        for case, job in annotation.jobs.items():
            if not annotation.table.tagged(case).any():
                shutil.copyfile(job.label or "", folder / "labelsTr" / f"{case}{job.ending}")
        counts = predict_tagged(annotation, folder)
        write_json(folder / "dataset.json", annotated_json(annotation))
        folds = training_only(annotation)
        if folds:
            write_json(folder / SPLITS, folds)
    slices = {name: (int(a), int(b)) for name, (a, b) in zip(annotation.table.labels.names, counts, strict=True) if a}
    return AnnotatedFromTags(target, len(annotation.tagged), slices, folds is not None)


def plan_annotation(labelling: Labelling, margin: float, background: float) -> Annotation:
    """Return the plan of an annotation; raises SourceError where the model cannot do it, or nothing is tagged."""
    how, folder = labelling.inference, labelling.model.folder
    folds = [folder / f"fold_{fold}" / how.checkpoint for fold in how.folds or ()]
    thresholds = [read_checkpoint(fold)["network_weights"].get("threshold") for fold in folds]
    if any(threshold is None for threshold in thresholds):
        raise SourceError(f"{folder} did not learn from image tags. Name a model of CMERTrainer.")
    middle = torch.stack(thresholds).double().mean(0).numpy()
    annotation = Annotation(**vars(labelling), thresholds=middle, margin=margin, background=background)
    if not annotation.tagged:
        raise SourceError(f"{labelling.raw}: no source declares anything as `tagged`, so there is nothing to annotate.")
    tags = [annotation.table.tags(job.case) for job in annotation.tagged]
    unknown = [name for name in labelling.model.never_annotated if any(of_case.get(name) for of_case in tags)]
    if unknown:
        raise SourceError(f"the model was not trained on {shorten(unknown)}: it cannot annotate that.")
    return annotation


def predict_tagged(annotation: Annotation, folder: Path) -> np.ndarray:
    """Write the label maps of the tagged cases in batches; return the sum of their `found_slices`."""
    predictor = make_predictor(annotation.model, annotation.inference)
    scratch, jobs = folder / "scratch", annotation.tagged
    slices = np.zeros((len(annotation.table.labels), 2), dtype=int)
    with progress_bar(range(0, len(jobs), AT_ONCE), "Annotating") as starts:
        for start in starts:
            batch = jobs[start : start + AT_ONCE]
            scratch.mkdir()
            outputs = [scratch / job.case for job in batch]
            images = [job.images for job in batch]
            predict_files(predictor, annotation.inference, images, outputs, probabilities=True)
            for job in batch:
                assert job.label is not None
                own = read_label_map(job.label, job.reader)
                with np.load(scratch / f"{job.case}.npz") as saved:
                    found = pseudo_map(annotation, job.case, saved["probabilities"], own.data.astype(np.intp))
                write_label_map(found, folder / "labelsTr" / f"{job.case}{job.ending}", job.reader, own.properties)
                slices += found_slices(annotation.table, job.case, found)
            shutil.rmtree(scratch)
    return slices


def annotated_json(annotation: Annotation) -> dict[str, Any]:
    """Return the dataset.json of the result: no `tags`, and sources of tagged cases annotated and marked as pseudo."""
    result, sources = without_tags(annotation.dataset_json), {}
    for name, source in annotation.table.sources.items():
        entry = result["sources"][name] | {"annotated": [*source.annotated, *source.tagged]}
        sources[f"{name} ({PSEUDO})" if source.tagged else name] = entry
    labels = annotation.dataset_json["labels"] | {"ignore": annotation.ignore_value}
    jobs = list(annotation.jobs.values())
    return result | {
        "labels": labels,
        "sources": sources,
        "dataset": dataset_entries(jobs, result["file_ending"]),
    }


def training_only(annotation: Annotation) -> list[Fold] | None:
    """Return existing or new folds in which cases with pseudo-labels only train; None if too few others validate."""
    table, tagged = annotation.table, {job.case for job in annotation.tagged}
    folders = (preprocessed_folder(annotation.raw.name), annotation.raw)
    files = [folder / SPLITS for folder in folders if folder is not None]
    file = next((file for file in files if file.is_file()), None)
    masks = {table.patient_of(case) for case in table.cases if table.known(case).any() and case not in tagged}
    if file is None and len(masks) < 2:
        return None
    splits = read_splits(file, table) if file else stratified_split(table, min(FOLDS, len(masks)))
    parts = [only_training(fold, lambda case: case not in tagged, table.patient_of) for fold in splits]
    return [{"train": sorted(part.train), "val": part.val} for part in parts] if all(p.val for p in parts) else None
