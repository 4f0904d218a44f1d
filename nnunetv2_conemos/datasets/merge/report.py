"""What a merge did: labels x sources, what was renamed, what to look at; as a table, a picture and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnunetv2_conemos.annotations.overview import draw, similar_names
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.merge.load import Part
from nnunetv2_conemos.files import write_json

REPORT, PICTURE = "merge_report.json", "merge_report.png"


@dataclass(frozen=True)
class MergeReport:
    """`occurs` [sources, K]: annotated cases that hold the label; `notes`: what happened on the way."""

    table: SourceTable
    occurs: np.ndarray
    notes: list[str]
    parts: list[Part]

    @property
    def changes(self) -> list[str]:
        """Labels that were renamed, joined or dropped."""
        texts = []
        for part in self.parts:
            for old, new in part.renamed.items():
                if new != old:
                    texts.append(f"{part.name}: '{old}' " + ("was dropped" if new is None else f"became '{new}'"))
            for region, owns in part.ingredient.regions.items():
                texts.append(f"{part.name}: region '{region}' is made of {', '.join(owns)}")
        return texts

    @property
    def conflicts(self) -> list[str]:
        """What the datasets may disagree on: one label by several names, one name in several datasets."""
        texts = []
        for alike in similar_names(self.table.labels.names):
            texts.append(f"{' and '.join(map(repr, alike))}: the same label? If so, --rename '{alike[1]}={alike[0]}'.")
        for label in self.table.labels.names:
            holders = [part.name for part in self.parts if label in part.labels]
            if len(holders) > 1:
                texts.append(
                    f"'{label}' is joined from {', '.join(holders)}: if they mean different things by it, "
                    f"--keep-apart '{label}'."
                )
        return texts


def write_report(report: MergeReport, folder: Path) -> None:
    """`merge_report.json` and `merge_report.png` beside the dataset.json."""
    table = report.table
    counts = {
        source: {
            "cases": len(table.cases_of(source)),
            "labels": {
                label: {"annotated": int(n), "found": int(m)}
                for label, n, m in zip(table.labels.names, annotated, occurs, strict=True)
                if n
            },
        }
        for source, annotated, occurs in zip(table.sources, table.counts(), report.occurs, strict=True)
    }
    made_of = {part.name: part.ingredient.origin for part in report.parts}
    content = {"made_of": made_of, "sources": counts, "changes": report.changes}
    write_json(folder / REPORT, {**content, "look_at": report.conflicts, "notes": report.notes})
    draw(table, report.occurs).savefig(folder / PICTURE, dpi=150)
