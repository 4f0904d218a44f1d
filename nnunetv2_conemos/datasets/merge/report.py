"""What a merge did: labels x sources, what was renamed, what to look at; as a record, a picture and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from nnunetv2_conemos.annotations.overview import draw, similar_names, source_counts
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.geometry import REORIENTING
from nnunetv2_conemos.datasets.merge.sources import SourceDataset
from nnunetv2_conemos.datasets.orientations import describe_orientations
from nnunetv2_conemos.datasets.patients import repeats, repeats_in_words
from nnunetv2_conemos.datasets.readers import candidates
from nnunetv2_conemos.datasets.writer import CaseDigest
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.files import write_json

REPORT, PICTURE = "merge_report.json", "merge_report.png"


@dataclass(frozen=True)
class MergeReport:
    """Result of `merge`: the raw folder written, who annotated what in it, and `notes` on how it was made.

    `occurs` [sources, K] counts the annotated cases that show a label; `datasets` are what the result is made of.
    """

    folder: Path
    table: SourceTable
    occurs: np.ndarray
    notes: list[str]
    datasets: list[SourceDataset]

    @property
    def changes(self) -> list[str]:
        """Labels that were renamed, joined or dropped."""
        texts = []
        for dataset in self.datasets:
            for old, new in dataset.labels.renamed.items():
                if new != old:
                    texts.append(f"{dataset.name}: '{old}' " + ("was dropped" if new is None else f"became '{new}'"))
            for region, owns in dataset.spec.regions.items():
                texts.append(f"{dataset.name}: region '{region}' is made of {', '.join(owns)}")
        return texts

    @property
    def conflicts(self) -> list[str]:
        """What the datasets may disagree on: one label under several names, one name in several datasets."""
        texts = []
        for alike in similar_names(self.table.labels.names):
            texts.append(
                f"{' and '.join(map(repr, alike))}: the same label? If so, --rename {quote(alike[1] + '=' + alike[0])}."
            )
        for label in self.table.labels.names:
            holders = [dataset.name for dataset in self.datasets if label in dataset.labels.names]
            if len(holders) > 1:
                texts.append(
                    f"'{label}' is joined from {', '.join(holders)}: if they mean different things by it, "
                    f"--keep-apart {quote(label)}."
                )
        return texts


def duplicate_notes(found: Mapping[str, CaseDigest]) -> list[str]:
    """Return a note on cases that have the same image, voxel by voxel: public collections share scans."""
    alike: dict[str, list[str]] = {}
    for case, digest in found.items():
        alike.setdefault(digest.image, []).append(case)
    twice = [" = ".join(cases) for cases in alike.values() if len(cases) > 1]
    note = (
        f"the same image, voxel by voxel, in {len(twice)} group(s) of cases: {shorten(twice)}. One may train while "
        "another validates: keep one of each, or put them into the same fold of splits_final.json."
    )
    return [note] if twice else []


def orientation_notes(dataset_json: Mapping[str, Any], found: Mapping[str, CaseDigest]) -> list[str]:
    """Return a note where images are stored in several orientations, and no reader brings them to one."""
    what = describe_orientations({case: digest.orientation for case, digest in found.items()})
    if not what or isinstance(candidates(dataset_json)[0](), REORIENTING):
        return []
    return [
        f"{what}. nnU-Net works on voxels as stored, so left and right may change places between cases: merge with "
        "--orientation LPS, which brings images and label maps to one order without resampling."
    ]


def unannotated_notes(datasets: Sequence[SourceDataset], found: Mapping[str, CaseDigest]) -> list[str]:
    """Return a note for each label that maps show in cases not annotated for it, where it was left out."""
    notes = []
    for dataset in datasets:
        holders: dict[str, list[str]] = {}
        for own, case in dataset.cases.items():
            shown = set().union(*(dataset.labels.space.get(value, frozenset()) for value in found[case.id].values))
            for label in shown - case.annotated:
                holders.setdefault(label, []).append(own)
        for label, cases in sorted(holders.items()):
            notes.append(
                f"{dataset.name}: '{label}' was left out of {len(cases)} case(s) whose maps hold it although it is not "
                f"annotated there: {shorten(cases)}."
            )
    return notes


def patient_notes(datasets: Sequence[SourceDataset]) -> list[str]:
    """Return a note for each dataset of which cases look like several of one patient that nobody declared."""
    undeclared = {
        dataset.name: [own for own, case in dataset.cases.items() if not case.patient] for dataset in datasets
    }
    found = {name: groups for name, cases in undeclared.items() if (groups := repeats(cases))}
    return [
        f"{name}: {repeats_in_words(groups)}; one may train while another validates. Name the patients: `patient` in a "
        "recipe, or a column `patient` in a table for --annotated."
        for name, groups in found.items()
    ]


def write_report(report: MergeReport, folder: Path) -> None:
    """Write `merge_report.json` and `merge_report.png`."""
    table = report.table
    counts = source_counts(table, report.occurs)
    made_of = {dataset.name: dataset.spec.origin for dataset in report.datasets}
    content = {"made_of": made_of, "sources": counts, "changes": report.changes}
    write_json(folder / REPORT, {**content, "look_at": report.conflicts, "notes": report.notes})
    draw(table, report.occurs).savefig(folder / PICTURE, dpi=150)
