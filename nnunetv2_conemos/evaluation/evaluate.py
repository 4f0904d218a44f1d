"""`conemos evaluate`: Dice, NSD and HD95 of predicted label maps, on annotated (case, label) pairs only.

NSD (normalised surface Dice, Nikolov et al., arXiv:1809.04430) and HD95 are MONAI's. What is easily left unsaid:

- A label annotated in a case but absent from both maps is not counted: status `both empty`.
- Absent from one of the two maps: Dice and NSD are 0; HD95 is undefined, and the number of such pairs is reported.
- Voxels of nnU-Net's ignore label are background in both maps.
- Means are over cases, then over the labels that have a value.

Axis letters: **K** labels, ***S** space, with `spacing` in the order of the array's axes.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, UInt16
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from scipy.ndimage import find_objects

from nnunetv2_conemos.annotations.entries import match_cases, parse_sources
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import group_sources, read_table
from nnunetv2_conemos.annotations.tags import ARRAY_AXIS, Axis
from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS
from nnunetv2_conemos.datasets.folders import dataset_name, preprocessed_folder, raw_folder, require_same_tables
from nnunetv2_conemos.datasets.writer import reader_of
from nnunetv2_conemos.errors import SourceError, shorten
from nnunetv2_conemos.evaluation.metrics import pair_scores, slice_scores
from nnunetv2_conemos.parallel import in_processes

SCORES, SUMMARY, FIGURE = "evaluation.csv", "evaluation.json", "evaluation.png"
LabelMap = UInt16[np.ndarray, "*S"]


class CaseFiles(NamedTuple):
    """The two label maps of a case."""

    case: str
    reference: Path
    prediction: Path


def find_dataset_json(dataset: str | None, djfile: Path | None, pred_folder: Path) -> Path:
    """The dataset.json that names labels and sources; raises FileNotFoundError that says where it was looked for."""
    if dataset is None:
        file = djfile or pred_folder / "dataset.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file. nnUNetv2_predict leaves one; else name it with -djfile.")
        return file
    if djfile is not None:
        raise ValueError(f"-djfile {djfile}: only with --annotated or --complete; -d {dataset} names one already.")
    named = [file for file in (Path(dataset), Path(dataset) / "dataset.json") if file.is_file()]
    return named[0] if named else known_dataset(dataset)[1] / "dataset.json"


def known_dataset(name_or_id: str) -> tuple[str, Path]:
    """Full name and folder (raw, else preprocessed) of a dataset; raises FileNotFoundError where nnU-Net has none."""
    name = dataset_name(name_or_id)
    require_same_tables(name)
    folder = raw_folder(name) or preprocessed_folder(name)
    if folder is None:
        places = f"nnUNet_raw ({nnUNet_raw.get()}) nor in nnUNet_preprocessed ({nnUNet_preprocessed.get()})"
        raise FileNotFoundError(f"{name}/dataset.json is neither in {places}. Set the variables to where it lies.")
    return name, folder


def who_annotated_what(args: argparse.Namespace, dataset_json: Mapping[str, Any], cases: list[str]) -> SourceTable:
    """The table that -d, --annotated or --complete asks for."""
    if args.complete:
        return table_of_sources({key: value for key, value in dataset_json.items() if key not in OWN_KEYS}, cases)
    if args.annotated:
        annotated = read_table(args.annotated).annotated
        unnamed = sorted(set(cases) - set(annotated))
        if unnamed:
            raise SourceError(
                f"--annotated {args.annotated}: expected every case to evaluate, found no entry of "
                f"{shorten(unnamed)}. Add them, without labels if they have none."
            )
        labels = LabelSpace.from_dataset_json(dataset_json)
        sources = group_sources({case: annotated[case] for case in cases}, labels)
        return table_of_sources({**dataset_json, "sources": sources}, cases)
    try:
        return table_of_sources(dataset_json, cases)
    except SourceError as error:
        hint = "Or say what counts by --annotated FILE (case -> labels) or --complete (every label in every case)."
        raise SourceError(f"{error} {hint}") from None


def table_of_sources(dataset_json: Mapping[str, Any], cases: Collection[str]) -> SourceTable:
    """SourceTable of some of a dataset's cases: unlike in the whole dataset, a glob may match none of them."""
    if "sources" not in dataset_json:
        return SourceTable.from_dataset_json(dataset_json, cases)
    sources = parse_sources(dataset_json["sources"])
    globs = {
        name: tuple(glob for glob in source.cases if any(fnmatchcase(case, glob) for case in cases))
        for name, source in sources.items()
    }
    present = {name: sources[name].model_copy(update={"cases": found}) for name, found in globs.items() if found}
    return SourceTable(LabelSpace.from_dataset_json(dataset_json), sources, match_cases(present, cases))


def paired_files(gt_folder: Path, pred_folder: Path, ending: str, chill: bool) -> tuple[list[CaseFiles], list[str]]:
    """Cases with both maps, and those without a prediction; `ending` is the dataset's `file_ending`.

    Raises FileNotFoundError that names the cases without a partner; `chill` allows cases without a prediction.
    """
    references, predictions = case_files(gt_folder, ending), case_files(pred_folder, ending)
    unpredicted, unknown = sorted(references.keys() - predictions), sorted(predictions.keys() - references)
    if unpredicted and not chill:
        raise FileNotFoundError(
            f"{pred_folder}: expected {len(references)} cases as in {gt_folder}, found no prediction of "
            f"{shorten(unpredicted)}. Predict them, or leave them out with --chill."
        )
    if unknown:
        raise FileNotFoundError(
            f"{gt_folder}: found no ground truth of the predicted {shorten(unknown)}. Add it or move them away."
        )
    return [CaseFiles(case, references[case], file) for case, file in sorted(predictions.items())], unpredicted


def case_files(folder: Path, ending: str) -> dict[str, Path]:
    """Case -> label map of a folder; raises FileNotFoundError where it holds none."""
    files = [file for file in sorted(folder.glob(f"*{ending}")) if file.name != FIGURE]
    if not files:
        raise FileNotFoundError(f"{folder}: expected label maps *{ending} (`file_ending` of dataset.json), found none.")
    return {file.name.removesuffix(ending): file for file in files}


def evaluate(
    files: Sequence[CaseFiles],
    table: SourceTable,
    dataset_json: Mapping[str, Any],
    tolerance: float | None = 2.0,
    processes: int = 1,
    title: str = "Evaluating",
    slices: Axis | None = None,
) -> pd.DataFrame:
    """Long table case, source, label, dice, nsd, hd95_mm, status: one row per annotated pair.

    `tolerance` in mm belongs to the NSD; None measures Dice alone, which is many times faster. `slices` along this axis
    add two columns, see `slice_scores`.
    """
    reader = reader_of(dataset_json, files[0].reference)
    jobs = [(entry, reader, table.labels, table.known(entry.case), tolerance, slices) for entry in files]
    if not any(known.any() for _, _, _, known, *_ in jobs):
        raise SourceError(f"none of the {len(files)} cases is annotated for any label: nothing to evaluate.")
    rows = [row for rows in in_processes(evaluate_case, jobs, processes, title) for row in rows]
    scores = pd.DataFrame(rows)
    scores.insert(1, "source", scores["case"].map(table.source_of))
    return scores


def evaluate_case(
    files: CaseFiles,
    reader: BaseReaderWriter,
    labels: LabelSpace,
    known: Bool[np.ndarray, " K"],
    tolerance: float | None,
    slices: Axis | None = None,
) -> list[dict[str, Any]]:
    """Scores of every annotated label of a case; see `evaluate`."""
    reference, prediction, spacing = read_pair(files, reader)
    if slices and reference.ndim != len(ARRAY_AXIS):
        raise ValueError(f"case '{files.case}': --slices {slices} wants volumes, found a single slice.")
    boxes = [occupied(files.reference, reference, labels), occupied(files.prediction, prediction, labels)]
    if labels.ignore is not None:
        ignored = reference == labels.ignore
        reference[ignored] = prediction[ignored] = 0
    rows = []
    for name, values in [(labels.names[k], labels.values[k]) for k in np.flatnonzero(known)]:
        box = union([found[value] for found in boxes for value in values if value in found])
        masks = np.isin(reference[box], values), np.isin(prediction[box], values)
        scores = pair_scores(*masks, spacing, tolerance)
        if slices:
            scores |= slice_scores(*masks, ARRAY_AXIS[slices])
        rows.append({"case": files.case, "label": name, **scores})
    return rows


def read_pair(files: CaseFiles, reader: BaseReaderWriter) -> tuple[LabelMap, LabelMap, tuple[float, ...]]:
    """Both label maps [*S] and their spacing in mm, 2D where they hold a single slice.

    Raises ValueError that names the case where size, spacing or direction differ.
    """
    (reference, grid), (prediction, other) = read_map(files.reference, reader), read_map(files.prediction, reader)
    for name, expected in grid.items():
        found = other[name]
        if not (expected == found if name == "size" else np.allclose(expected, found, rtol=1e-3, atol=1e-4)):
            raise ValueError(
                f"case '{files.case}': {name} differs, in array order: expected {expected} as in {files.reference}, "
                f"found {found} in {files.prediction}. Predict the image that was annotated, or resample to its grid."
            )
    spacing = grid["spacing"]
    if 1 in reference.shape:  # in 3D, every voxel of a single slice would be surface
        axis = reference.shape.index(1)
        return reference.squeeze(axis), prediction.squeeze(axis), spacing[:axis] + spacing[axis + 1 :]
    return reference, prediction, spacing


def read_map(file: Path, reader: BaseReaderWriter) -> tuple[LabelMap, dict[str, tuple[float, ...]]]:
    """A label map [*S], and its size, spacing and direction (empty where the file format holds none)."""
    try:
        data, properties = reader.read_seg(str(file))
    except RuntimeError as error:  # of SimpleITK
        raise OSError(f"{file}: cannot be read as a label map. {error}") from None
    with np.errstate(invalid="ignore"):
        voxels = data[0].astype(np.uint16)
    if len(data) != 1 or (voxels != data[0]).any():
        found = f"{len(data)} channel(s) with values from {data.min():g} to {data.max():g}"
        raise ValueError(f"{file}: expected one channel of whole numbers, 0 to 65535, found {found}.")
    direction = properties.get("sitk_stuff", {}).get("direction", ())
    return voxels, {"size": voxels.shape, "spacing": tuple(map(float, properties["spacing"])), "direction": direction}


def occupied(file: Path, voxels: LabelMap, labels: LabelSpace) -> dict[int, tuple[slice, ...]]:
    """Bounding box of every value in a label map; raises SourceError for a value that no label has."""
    boxes = {value: box for value, box in enumerate(find_objects(voxels), 1) if box is not None}
    foreign = sorted(boxes.keys() - {labels.ignore, *(value for values in labels.values for value in values)})
    if foreign:
        raise SourceError(
            f"{file}: expected the label values of {', '.join(labels.names)}, found {shorten(map(str, foreign))}. "
            "Does this dataset.json belong to the map?"
        )
    return boxes


def union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Smallest box around all boxes; of none, the whole array."""
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))
