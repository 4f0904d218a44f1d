"""nnU-Net's pools without processes: a forked or spawned one costs seconds, and the jobs of tests are tiny."""

from __future__ import annotations

import multiprocessing
import multiprocessing.dummy
from collections.abc import Callable, Iterable
from typing import Any

import pytest


class SerialPool:
    """Takes the place of a pool whose `starmap` is all that is needed."""

    def __init__(self, processes: int):
        self.processes = processes

    def __enter__(self) -> SerialPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def starmap(self, function: Callable[..., Any], jobs: Iterable[tuple]) -> list[Any]:
        return [function(*job) for job in jobs]


def list_files_serially(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net forks twelve processes each time it lists the images of a dataset."""
    monkeypatch.setattr("nnunetv2.utilities.utils.Pool", SerialPool)


def pools_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pools of spawned processes be pools of threads."""
    real, threads = multiprocessing.get_context, multiprocessing.dummy
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: threads if method else real())
