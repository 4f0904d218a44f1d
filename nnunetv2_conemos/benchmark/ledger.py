"""Record the measurements in two tables that grow run by run.

`runs.csv`: one row per arm, epochs, seed and fold, with means and costs. `cases.csv`: the scores of every test case
and label. The `status` of a run that failed says why; it is tried again when the benchmark is continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

import nnunetv2_conemos
from nnunetv2_conemos.benchmark.config import Run
from nnunetv2_conemos.evaluation.metrics import METRICS, of_present, read_named, summarise
from nnunetv2_conemos.files import write_aside

KEY = ["arm", "epochs", "seed", "fold"]
DONE = "done"
PACKAGES = ("nnunetv2-conemos", "nnunetv2", "torch")
TEXTS = (
    "arm", "fold", "case", "label", "source", "status",
    "configuration", "plans_hash", "device", "date", "code", *PACKAGES,
)  # fmt: skip


@dataclass(frozen=True)
class Ledger:
    """The two tables in the folder of a benchmark."""

    folder: Path

    @property
    def runs(self) -> pd.DataFrame:
        return read(self.folder / "runs.csv", [*KEY, "status"])

    @property
    def cases(self) -> pd.DataFrame:
        """Scores of the runs that are done."""
        done = self.runs.query("status == @DONE")[KEY]
        return read(self.folder / "cases.csv", [*KEY, "case", "label", *METRICS, "status"]).merge(done, on=KEY)

    def is_done(self, run: Run) -> bool:
        return DONE in set(of_run(self.runs, run)["status"])

    def enter(self, run: Run, scores: pd.DataFrame, facts: Mapping[str, Any]) -> None:
        """Record a run that is done; `scores` has a row per test case and label."""
        labels = list(dict.fromkeys(scores["label"]))
        summary = summarise(of_present(scores), labels)
        means = {metric: summary[metric].mean() for metric in METRICS}
        per_label = {f"{metric} {label}": summary[metric][label] for metric in METRICS for label in labels}
        replace(self.folder / "cases.csv", self.cases, run, scores.drop(columns="source").assign(**run.key))
        self._enter(run, {"status": DONE, **means, **per_label, **facts})

    def enter_failure(self, run: Run, reason: str, facts: Mapping[str, Any]) -> None:
        self._enter(run, {"status": f"failed: {reason}", **facts})

    def _enter(self, run: Run, row: Mapping[str, Any]) -> None:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        versions = {**{name: version(name) for name in PACKAGES}, "code": code_hash()}
        replace(self.folder / "runs.csv", self.runs, run, pd.DataFrame([{**run.key, **row, **versions, "date": date}]))


@cache
def code_hash() -> str:
    """Return a hash of this package's code, to tell states of one version apart."""
    files = sorted(Path(nnunetv2_conemos.__file__).parent.rglob("*.py"))
    return blake2b(b"".join(file.read_bytes() for file in files), digest_size=6).hexdigest()


def read(file: Path, columns: list[str]) -> pd.DataFrame:
    return read_table(file) if file.is_file() else pd.DataFrame(columns=pd.Index(columns))


def read_table(file: Path) -> pd.DataFrame:
    return read_named(file, TEXTS)


def of_run(table: pd.DataFrame, run: Run) -> pd.DataFrame:
    return table.loc[(table[KEY] == pd.Series(run.key)).all(axis=1)]


def replace(file: Path, table: pd.DataFrame, run: Run, rows: pd.DataFrame) -> None:
    """Write a table again, with these rows in place of those of the run."""
    kept = table.drop(of_run(table, run).index)
    whole = pd.concat([kept, rows]) if len(kept) else rows
    whole = whole[[*KEY, *(column for column in whole.columns if column not in KEY)]]
    write_aside(file, lambda aside: whole.to_csv(aside, index=False))
