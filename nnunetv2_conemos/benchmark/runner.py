"""Run nnU-Net's commands and this package's in the folder of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_conemos.subprocesses import run_logged


@dataclass(frozen=True)
class Runner:
    """Settings with which the commands of a benchmark are run.

    `folder` is the benchmark's, `environment` the variables of every command, `lock` a file descriptor that commands
    inherit; `report` is called with the last line of a command's log.
    """

    folder: Path
    device: str
    processes: int
    environment: Mapping[str, str]
    lock: int | None = None
    report: Callable[[str], object] = lambda _: None

    def run(self, log: str, *words: str | Path, variables: Mapping[str, str] | None = None) -> None:
        """Run a command; its log is logs/`log`.log. Raises CommandError."""
        (self.folder / "logs").mkdir(exist_ok=True)
        environment = {**self.environment, **(variables or {})}
        file = self.folder / "logs" / f"{log}.log"
        run_logged([str(word) for word in words], file, environment, self.report, self.lock)
