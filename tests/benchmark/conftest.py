"""A benchmark whose commands are replaced by what they leave behind, and whose report has no figures."""

from pathlib import Path

import pytest
from benchmarks import StandIn

from nnunetv2_conemos.benchmark import report
from nnunetv2_conemos.benchmark.runner import Runner


@pytest.fixture
def stand_in(preprocessed_phantom: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(preprocessed_phantom)
    monkeypatch.setattr(Runner, "run", lambda runner, *words, **more: stand_in(runner, *words, **more))
    monkeypatch.setattr(report, "draw_figures", lambda *_: {})
    return stand_in
