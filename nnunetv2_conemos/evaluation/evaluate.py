"""Evaluate a folder of predicted label maps: Dice, NSD and HD95, on annotated (case, label) pairs only.

NSD (normalised surface Dice, Nikolov et al., arXiv:1809.04430) and HD95 are MONAI's. Means are over cases, then over
the labels that have a value. `scoring` says what counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

from nnunetv2_conemos.annotations.entries import match_cases, parse_sources
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import group_sources, read_table
from nnunetv2_conemos.annotations.tags import Axis
from nnunetv2_conemos.datasets.dataset_json import OWN_KEYS, LabelMaps, read_checked
from nnunetv2_conemos.datasets.folders import dataset_name, preprocessed_folder, raw_folder, require_same_tables
from nnunetv2_conemos.errors import ExistingFileError, InputError, MissingFileError, SourceError, shorten
from nnunetv2_conemos.evaluation.metrics import summary_json
from nnunetv2_conemos.evaluation.plots import draw_dice
from nnunetv2_conemos.evaluation.provenance import LABELS, REFERENCES, digests, require_predicted_labels
from nnunetv2_conemos.evaluation.scoring import CaseFiles, score_cases
from nnunetv2_conemos.files import Writer, exclusive, json_writer, write_together

SCORES, SUMMARY, FIGURE = "evaluation.csv", "evaluation.json", "evaluation.png"
Annotated = Path | str | Mapping[str, Sequence[str]]  # a table of `conemos declare`, or case -> labels


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    `scores`: a row per annotated (case, label): case, source, label, dice, nsd, hd95_mm, status. `summary`: the content
    of evaluation.json, means over labels, per label and per source. `labels` in the order of dataset.json, `tolerance`
    of the NSD in mm, `files` that were written, `not_predicted`: cases left out because they have no prediction;
    `notes`: what could not be checked.
    """

    scores: pd.DataFrame
    summary: dict[str, Any]
    labels: tuple[str, ...]
    tolerance: float
    files: tuple[Path, ...]
    not_predicted: tuple[str, ...]
    notes: tuple[str, ...] = ()


def evaluate(
    references: Path | str,
    predictions: Path | str,
    *,
    dataset: str | int | Path | None = None,
    annotated: Annotated | None = None,
    complete: bool = False,
    dataset_json: Path | str | None = None,
    output: Path | str | None = None,
    tolerance: float = 2.0,
    slices: Axis | None = None,
    chill: bool = False,
    figure: bool = False,
    overwrite: bool = False,
    processes: int = 1,
) -> Evaluation:
    """Score the label maps in `predictions` against those of the same names in `references`, and write the results.

    Args:
        references: folder of annotated label maps.
        predictions: folder of predicted label maps.
        dataset: its `sources` say which labels of a case count: name, id, folder or dataset.json.
        annotated: the labels that count: case -> labels, or a JSON or CSV file of them (see `read_table`).
        complete: all labels count in every case. Exactly one of these three is expected.
        dataset_json: labels and file ending, without `dataset`; None: the dataset.json in `predictions`.
        output: folder of evaluation.csv, evaluation.json and evaluation.png; None: `predictions`.
        tolerance: of the NSD, in mm.
        slices: also measure the mean Dice of the slices along this axis that show a label.
        chill: leave out cases without a prediction.
        figure: also draw evaluation.png, Dice per label and source.
        overwrite: replace the results of an earlier evaluation.
        processes: how many score cases; more than one requires a script with `if __name__ == "__main__":`.

    Raises FileExistsError for results that are there already unless `overwrite`; FileNotFoundError, ValueError or
    SourceError, before anything is written, for input that does not fit together.
    """
    if sum((dataset is not None, annotated is not None, complete)) != 1:
        raise InputError("expected exactly one of `dataset`, `annotated` and `complete`, to say which labels count.")
    if not 0 <= tolerance < math.inf:
        raise InputError(f"tolerance {tolerance:g}: expected millimetres, 0 or more.")
    references, predictions = Path(references), Path(predictions)
    dataset_file = find_dataset_json(dataset, Path(dataset_json) if dataset_json else None, predictions)
    content = read_checked(dataset_file, LabelMaps)
    output = Path(output or predictions)
    files = tuple(output / name for name in (SCORES, SUMMARY, FIGURE)[: 3 if figure else 2])
    with exclusive(files[0]):
        if not overwrite and (existing := [str(file) for file in files if file.exists()]):
            raise ExistingFileError(f"{shorten(existing)}: exists. Pass --overwrite, or name another folder with -o.")
        pairs, unpredicted = paired_files(references, predictions, content["file_ending"], chill)
        table = annotated_labels(content, [pair.case for pair in pairs], annotated, complete)
        note = require_predicted_labels(predictions, dataset_file, content["labels"], table)
        scores = score_cases(pairs, table, content, tolerance, processes, slices=slices)
        facts = {"reference": str(references), "prediction": str(predictions), "dataset_json": str(dataset_file)}
        facts |= {"tolerance_mm": tolerance, "not_predicted": unpredicted, LABELS: content["labels"]}
        facts |= {REFERENCES: digests((pair.case, pair.reference) for pair in pairs)}
        summary = {**facts, **summary_json(scores, table.labels.names)}
        write_together(writers(files, scores, summary, table.labels.names), files[0])
    notes = () if note is None else (note,)
    return Evaluation(scores, summary, tuple(table.labels.names), tolerance, files, tuple(unpredicted), notes)


def writers(
    files: Sequence[Path], scores: pd.DataFrame, summary: Mapping[str, Any], labels: Sequence[str]
) -> dict[Path, Writer]:
    """Return how the files of an evaluation are written; the first, which `conemos compare` reads, comes last."""
    every: list[Writer] = [
        lambda file: scores.to_csv(file, index=False),
        json_writer(summary),
        lambda file: draw_dice(scores, labels, file),
    ]
    return dict(reversed(list(zip(files, every, strict=False))))


def find_dataset_json(dataset: str | int | Path | None, dataset_json: Path | None, predictions: Path) -> Path:
    """Find the dataset.json that names labels and sources; raises FileNotFoundError that says where it was expected."""
    if dataset is None:
        file = dataset_json or predictions / "dataset.json"
        if not file.is_file():
            raise MissingFileError(f"{file}: no such file. nnUNetv2_predict writes one; else name it with -djfile.")
        return file
    if dataset_json is not None:
        raise InputError(f"-djfile {dataset_json}: only with --annotated or --complete; -d {dataset} has its own.")
    named = [file for file in (Path(str(dataset)), Path(str(dataset)) / "dataset.json") if file.is_file()]
    return named[0] if named else known_dataset(str(dataset))[1] / "dataset.json"


def known_dataset(name_or_id: str | int) -> tuple[str, Path]:
    """Return full name and folder (raw, else preprocessed) of a dataset; raises FileNotFoundError if there is none."""
    name = dataset_name(name_or_id)
    require_same_tables(name)
    folder = raw_folder(name) or preprocessed_folder(name)
    if folder is None:
        places = f"nnUNet_raw ({nnUNet_raw.get()}) nor in nnUNet_preprocessed ({nnUNet_preprocessed.get()})"
        raise MissingFileError(f"{name}/dataset.json is neither in {places}. Set the variables to where it lies.")
    return name, folder


def annotated_labels(
    dataset_json: Mapping[str, Any], cases: Sequence[str], annotated: Annotated | None, complete: bool
) -> SourceTable:
    """Return the table of which labels count in which case; raises SourceError for cases that it does not cover."""
    if complete:
        return table_of_sources({key: value for key, value in dataset_json.items() if key not in OWN_KEYS}, cases)
    if annotated is not None:
        labels_of = annotated if isinstance(annotated, Mapping) else read_table(Path(annotated)).annotated
        if unnamed := sorted(set(cases) - set(labels_of)):
            given = "(case -> labels)" if isinstance(annotated, Mapping) else annotated
            raise SourceError(
                f"--annotated {given}: expected every case to evaluate, found no entry for {shorten(unnamed)}. "
                "Add them, without labels if they have none."
            )
        labels = LabelSpace.from_dataset_json(dataset_json)
        sources = group_sources({case: list(labels_of[case]) for case in cases}, labels)
        return table_of_sources({**dataset_json, "sources": sources}, cases)
    try:
        return table_of_sources(dataset_json, cases)
    except SourceError as error:
        hint = "Or say which labels count with --annotated FILE (case -> labels) or --complete (all, in every case)."
        raise SourceError(f"{error} {hint}") from None


def table_of_sources(dataset_json: Mapping[str, Any], cases: Collection[str]) -> SourceTable:
    """Build the SourceTable of some of a dataset's cases; unlike for all of them, a glob may match none."""
    if "sources" not in dataset_json:
        return SourceTable.from_dataset_json(dataset_json, cases)
    sources = parse_sources(dataset_json["sources"])
    globs = {
        name: tuple(glob for glob in source.cases if any(fnmatchcase(case, glob) for case in cases))
        for name, source in sources.items()
    }
    present = {name: sources[name].model_copy(update={"cases": found}) for name, found in globs.items() if found}
    return SourceTable(LabelSpace.from_dataset_json(dataset_json), sources, match_cases(present, cases))


def paired_files(references: Path, predictions: Path, ending: str, chill: bool) -> tuple[list[CaseFiles], list[str]]:
    """Return the cases with both maps, and those without a prediction; `ending` is the dataset's `file_ending`.

    Raises FileNotFoundError that names the cases without a partner; `chill` allows cases without a prediction.
    """
    true, predicted = case_files(references, ending), case_files(predictions, ending)
    unpredicted, unknown = sorted(true.keys() - predicted), sorted(predicted.keys() - true)
    if unpredicted and not chill:
        raise MissingFileError(
            f"{predictions}: expected {len(true)} cases as in {references}, found no prediction of "
            f"{shorten(unpredicted)}. Predict them, or leave them out with --chill."
        )
    if unknown:
        raise MissingFileError(
            f"{references}: found no reference map of the predicted {shorten(unknown)}. Add it or move them away."
        )
    return [CaseFiles(case, true[case], file) for case, file in sorted(predicted.items())], unpredicted


def case_files(folder: Path, ending: str) -> dict[str, Path]:
    """Return case -> label map of a folder; raises FileNotFoundError where there is none."""
    files = [file for file in sorted(folder.glob(f"*{ending}")) if file.name != FIGURE]
    if not files:
        raise MissingFileError(f"{folder}: expected label maps *{ending} (`file_ending` of dataset.json), found none.")
    return {file.name.removesuffix(ending): file for file in files}
