"""A small part of the campaign in every run of the tests; `make attack` runs all of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from phantoms import FOLDERS

from attack import children, faults, fuzz
from attack.commands import COMMANDS
from attack.digests import tree
from attack.starting_points import write_light


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the campaign sets in the environment end with a test."""
    for name in (*FOLDERS, "nnUNet_n_proc_DA", "nnUNet_compile"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The light datasets."""
    write_light(tmp_path / "template")
    return tmp_path / "template"


# Whether the campaign would see a fault: commands of our own that have one.


def torn(base: Path) -> int:
    (base / "out" / "a.json").write_text("1")
    (base / "out" / "b.json").write_text("2")
    return 0


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, template: Path, tmp_path: Path) -> faults.Prepared:
    """A command that writes its two files one after the other, prepared for faults."""
    command = COMMANDS["merge"]._replace(name="broken", words=("x",), needs=(), parts=("out",))
    monkeypatch.setattr(faults, "work_of", lambda _, base: lambda: torn(base))
    return faults.prepare(command, template, tmp_path / "base")


def test_a_result_that_is_torn_is_seen(broken):
    assert broken.operations == 2
    seen = faults.inflict(broken, faults.Fault("KILL", 2))
    assert seen["status"] == -signal.SIGKILL
    assert seen["problems"] == {"torn": "out"}
    assert tree(broken.base) == broken.after, "after the rerun"


def test_a_signal_that_has_no_effect_is_seen(broken, monkeypatch):
    def deaf(base: Path) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return torn(base)

    monkeypatch.setattr(faults, "work_of", lambda _, base: lambda: deaf(base))
    assert "wrong status" in faults.inflict(broken, faults.Fault("TERM", 1))["problems"]


def test_a_process_that_is_left_is_seen(monkeypatch):
    monkeypatch.setattr(children, "GRACE", 0.2)

    def leaves_one() -> int:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return 0

    ended = children.run(leaves_one)
    assert ended.status == 0
    assert ["time.sleep" in line for line in ended.left] == [True]


def test_a_command_that_hangs_is_seen():
    ended = children.run(lambda: signal.pause(), limit=0.2)
    assert ended.status is None


def test_an_input_that_is_accepted_wrongly_or_refused_without_a_name_is_seen():
    made = fuzz.Attempt("", lambda: None, ("file.csv",), "truncated")
    assert fuzz.problem_with("success", "", made) == "accepted: truncated"
    assert not fuzz.problem_with("refused", "file.csv: it is cut", made)
    assert fuzz.problem_with("refused", "it is cut", made)
    assert fuzz.carry_out(fuzz.Attempt("", lambda: json.loads("{")))[0] == "foreign"
