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

from attack import children, faults, fuzz, inputs, pairs, summary
from attack.commands import COMMANDS, filled_in
from attack.digests import tree
from attack.starting_points import write_light

INPUTS = 200
FEW_FAULTS = 6


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the campaign sets in the environment end with a test."""
    for name in (*FOLDERS, "nnUNet_n_proc_DA", "nnUNet_def_n_proc", "nnUNet_compile"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """The light datasets."""
    write_light(tmp_path / "template")
    return tmp_path / "template"


def test_fuzzed_inputs_succeed_or_are_refused(tmp_path):
    records = fuzz.run(tmp_path, INPUTS, seed=7, workers=1)
    assert len(records) == INPUTS
    assert len({record["kind"] for record in records}) > 5
    assert {"success", "refused"} <= {record["outcome"] for record in records}
    assert not summary.failures("fuzz", records)


FOUND = json.loads((Path(__file__).parent / "corpus" / "found.json").read_text())


@pytest.mark.parametrize("entry", FOUND, ids=[entry["what"] for entry in FOUND])
def test_what_once_failed_is_refused_by_name(entry, template):
    data = bytes.fromhex(entry["bytes"]) if "bytes" in entry else entry["text"].encode() * entry.get("times", 1)
    for name, text in entry.get("beside", {}).items():
        (template / name).parent.mkdir(exist_ok=True)
        (template / name).write_text(text)
    file = template / entry["file"]
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(entry.get("after", "").encode() + data)
    words = filled_in(tuple(entry["words"]), template)
    call = inputs.check("702") if words[0] == "check" else inputs.run(*words)
    outcome, message, where = fuzz.carry_out(fuzz.Attempt(entry["what"], call))
    assert outcome == "refused", (outcome, message, where)
    assert any(name in message for name in entry["names"]), message
    assert not list(template.glob("nnUNet_raw/*Dataset780_Out*"))


@pytest.mark.parametrize("name", ["merge --overwrite", "declare", "import"])
def test_a_command_survives_faults(name, template, tmp_path):
    records = faults.attack_command((COMMANDS[name], template, tmp_path, FEW_FAULTS, 0, False))
    assert len(records) == FEW_FAULTS
    assert not summary.failures("faults", records)


def test_two_merges_at_once(template, tmp_path):
    name, first, second = next(pair for pair in pairs.pairs() if pair[0] == "merge and merge of one")
    records = pairs.attempt((name, first, second, template, tmp_path, 1, 0))
    assert not summary.failures("pairs", records)


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
