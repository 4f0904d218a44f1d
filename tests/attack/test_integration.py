"""nnU-Net's integration recipe, as far as it takes minutes; `python -m attack.integration` runs all of it."""

from __future__ import annotations

import sys

import pytest
from real import real_data

from attack import integration

pytestmark = [*real_data, pytest.mark.slow]


def test_one_fold_of_plain_labels_from_planning_to_the_exported_label(tmp_path, monkeypatch, capsys):
    words = ["-o", str(tmp_path), "-d", "999", "-c", "2d", "-f", "0", "-tr", "ConditionalFiLMTrainer", "--cases", "10"]
    monkeypatch.setattr(sys, "argv", ["integration", *words])
    assert integration.main() == 0, capsys.readouterr().out
