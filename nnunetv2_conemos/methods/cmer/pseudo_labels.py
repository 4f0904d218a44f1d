"""`conemos cams`: a model that learnt from image tags annotates the tagged cases, as far as it is sure.

The result is a raw dataset in which these cases have label maps of their own sources, marked as pseudo: label,
background, or nnU-Net's ignore label where the activation is near its threshold. Cases with label maps stay as they
are. Axis letters: **K** labels, ***S** space.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from rich.progress import track

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.tags import ARRAY_AXIS, slices_by_label, without_tags
from nnunetv2_conemos.datasets.folders import preprocessed_folder
from nnunetv2_conemos.datasets.label_maps import completion_table
from nnunetv2_conemos.datasets.splits import stratified_split
from nnunetv2_conemos.datasets.writer import CaseJob, dataset_entries, input_files, write_seg
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.files import new_folder, require_no_inputs_within, write_json
from nnunetv2_conemos.inference.model_folder import ModelFolder, read_checkpoint
from nnunetv2_conemos.inference.predictor import AT_ONCE, Inference, Labelling, plan_labelling, predict_files
from nnunetv2_conemos.methods.cmer.network import SOFTNESS

PSEUDO = "pseudo"  # in the names of sources whose label maps were predicted
FOLDS = 5


@dataclass(frozen=True)
class Annotation(Labelling):
    """The tagged cases are annotated.

    A voxel is the label where its activation is `margin` above the label's threshold, and background where it is below
    `background`, and `margin` below the threshold; `thresholds`: of each label, [K].
    """

    thresholds: np.ndarray
    margin: float
    background: float

    @property
    def sure_background(self) -> np.ndarray:
        """The largest distance [K] of an activation to the threshold that is background."""
        return np.minimum(self.background - self.thresholds, -self.margin)

    @property
    def tagged(self) -> list[CaseJob]:
        return [job for case, job in self.jobs.items() if self.table.tagged(case).any()]


def plan_annotation(
    model: ModelFolder, inference: Inference, raw: Path, margin: float, background: float
) -> Annotation:
    """Raises SourceError where the model did not learn from tags, or does not fit the dataset, or nothing is tagged."""
    folds = [model.folder / f"fold_{fold}" / inference.checkpoint for fold in inference.folds]
    thresholds = [read_checkpoint(fold)["network_weights"].get("threshold") for fold in folds]
    if any(threshold is None for threshold in thresholds):
        raise SourceError(f"{model.folder} did not learn from image tags. Name a model of CMERTrainer.")
    middle = torch.stack(thresholds).double().mean(0).numpy()
    annotation = Annotation(
        **vars(plan_labelling(model, inference, raw)), thresholds=middle, margin=margin, background=background
    )
    if not annotation.tagged:
        raise SourceError(f"{raw}: no source declares anything as `tagged`, so there is nothing to annotate.")
    tags = [annotation.table.tags(job.case) for job in annotation.tagged]
    never_annotated = [name for name in model.never_annotated if any(of_case.get(name) for of_case in tags)]
    if never_annotated:
        raise SourceError(f"the model was never taught {shorten(never_annotated)}: it cannot annotate that.")
    return annotation


def annotate(annotation: Annotation, target: Path, overwrite: bool) -> np.ndarray:
    """Write the dataset, whole or not at all; returns `found_slices` of all tagged cases together."""
    require_no_inputs_within(target, input_files(annotation.jobs.values()))
    with new_folder(target, overwrite) as folder:
        (folder / "labelsTr").mkdir()
        for case, job in annotation.jobs.items():
            if not annotation.table.tagged(case).any():
                shutil.copyfile(job.label or "", folder / "labelsTr" / f"{case}{job.ending}")
        slices = predict_tagged(annotation, folder)
        write_json(folder / "dataset.json", annotated_json(annotation))
        splits = training_only(annotation)
        if splits:
            write_json(folder / "splits_final.json", splits)
        else:
            print("no splits_final.json: fewer than two cases have label maps to validate on. Write it by hand.")
    return slices


def predict_tagged(annotation: Annotation, folder: Path) -> np.ndarray:
    """Label maps of the tagged cases, some at a time; returns `found_slices` of all of them together."""
    how = annotation.inference
    predictor = nnUNetPredictor(use_mirroring=how.mirroring, device=torch.device(how.device), allow_tqdm=False)
    folds: Any = tuple(how.folds)
    predictor.initialize_from_trained_model_folder(str(annotation.model.folder), folds, how.checkpoint)
    scratch, jobs = folder / "scratch", annotation.tagged
    slices = np.zeros((len(annotation.table.labels), 2), dtype=int)
    for start in track(range(0, len(jobs), AT_ONCE), "Annotating"):
        batch = jobs[start : start + AT_ONCE]
        scratch.mkdir()
        images = [[str(file) for file in job.images] for job in batch]
        predict_files(predictor, how, images, [str(scratch / job.case) for job in batch], probabilities=True)
        for job in batch:
            own, grid = job.reader.read_seg(str(job.label))
            with np.load(scratch / f"{job.case}.npz") as saved:
                found = pseudo_map(annotation, job.case, saved["probabilities"], own[0].astype(np.intp))
            write_seg(job.reader, found, folder / "labelsTr" / f"{job.case}{job.ending}", grid)
            slices += found_slices(annotation.table, job.case, found)
        shutil.rmtree(scratch)
    return slices


def found_slices(table: SourceTable, case: str, found: np.ndarray) -> np.ndarray:
    """Integer [K,2]: slices of a label map [*S] that are tagged as showing each label, and how many of them do."""
    counts = np.zeros((len(table.labels), 2), dtype=int)
    in_slices = np.moveaxis(found, ARRAY_AXIS[table.tag_axis], 0)
    for name, (present, known) in slices_by_label(table.tags(case), len(in_slices), case).items():
        k = table.labels.names.index(name)
        there = np.isin(in_slices, table.labels.values[k]).any((1, 2))
        counts[k] = (present & known).sum(), (present & known & there).sum()
    return counts


def distances(probabilities: np.ndarray, has_regions: bool) -> np.ndarray:
    """Activation minus threshold [K,*S], from what nnU-Net saves of the network's logits."""
    tiny = np.finfo(np.float32).tiny
    p = np.maximum(probabilities.astype(np.float64), tiny)
    logits = np.log(p) - np.log(np.maximum(1 - p, tiny)) if has_regions else np.log(p[1:]) - np.log(p[:1])
    return SOFTNESS * logits


def pseudo_map(annotation: Annotation, case: str, probabilities: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Label map [*S]: annotated labels as in its `own`, tagged ones where the activation leaves no doubt, else ignore.

    A slice that is tagged as without a label has no voxel of it, and no doubt. Where one is tagged as showing a label
    of which no voxel is sure, what seems to be without it is in doubt too, unless annotations say that it is.
    """
    table, labels = annotation.table, annotation.table.labels
    distance = distances(probabilities, labels.has_regions)
    axis = ARRAY_AXIS[table.tag_axis]
    shown = np.zeros((len(labels), own.shape[axis]), dtype=bool)  # slices that show a label, by their tags
    for name, (present, known) in slices_by_label(table.tags(case), own.shape[axis], case).items():
        k = labels.names.index(name)
        np.moveaxis(distance[k], axis, 0)[known & ~present] = -np.inf
        shown[k] = present & known
    tagged = np.flatnonzero(table.tagged(case))
    taken = drawn(annotation, case, own)
    left_open = completion_table(labels, table.annotated(case))[1][own]
    best = tagged[distance[tagged].argmax(0)]
    values = annotation.dataset_json.get("regions_class_order") or [v[0] for v in labels.values]
    result, unsure = np.zeros(own.shape, dtype=np.uint16), np.zeros(own.shape, dtype=bool)
    for k, value in enumerate(values):
        if table.known(case)[k]:
            result[np.isin(own, labels.values[k])] = value
        elif table.tagged(case)[k]:
            chosen = (distance[k] > annotation.margin) & (labels.has_regions | (best == k))
            result[chosen & ~taken] = value
            unsure |= (distance[k] <= annotation.margin) & (distance[k] >= annotation.sure_background[k])
            missed = shown[k] & ~np.moveaxis(chosen & ~taken, axis, 0).any((1, 2))
            np.moveaxis(unsure, axis, 0)[missed] |= np.moveaxis(left_open, axis, 0)[missed]
    doubtful = unsure & (labels.has_regions | (result == 0))
    result[(doubtful & ~taken) | (own == labels.ignore)] = annotation.ignore_value
    return result


def drawn(annotation: Annotation, case: str, own: np.ndarray) -> np.ndarray:
    """Boolean [*S]: voxels that somebody labelled, which exclude all others; regions exclude nothing."""
    labels = annotation.table.labels
    values = annotation.table.allowed_values(case) - {0} if not labels.has_regions else set()
    return np.isin(own, list(values)) & annotation.table.known(case).any()


def annotated_json(annotation: Annotation) -> dict[str, Any]:
    """dataset.json of the result: no `tags` any more, sources of tagged cases annotated and marked as pseudo."""
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


def training_only(annotation: Annotation) -> list[dict[str, list[str]]] | None:
    """Folds in which cases with predicted labels only train: those of the dataset, or new ones; None: too few cases."""
    table, tagged = annotation.table, {job.case for job in annotation.tagged}
    folders = (preprocessed_folder(annotation.raw.name), annotation.raw)
    files = [folder / "splits_final.json" for folder in folders if folder is not None]
    file = next((file for file in files if file.is_file()), None)
    masks = sum(bool(table.known(case).any()) for case in table.cases if case not in tagged)
    if file is None and masks < 2:
        return None
    splits = json.loads(file.read_text()) if file else stratified_split(table, min(FOLDS, masks))
    moved = [
        {
            "train": sorted({*fold["train"], *tagged.intersection(fold["val"])}),
            "val": [case for case in fold["val"] if case not in tagged],
        }
        for fold in splits
    ]
    return moved if all(fold["val"] for fold in moved) else None
