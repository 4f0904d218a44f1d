"""Pools without processes: a spawned one costs seconds, and the jobs of tests are tiny."""

from __future__ import annotations

import multiprocessing
import multiprocessing.dummy

import pytest


def pools_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pools of spawned processes be pools of threads."""
    real, threads = multiprocessing.get_context, multiprocessing.dummy
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: threads if method else real())
