"""A signal ends a command at once, with everything that it has started, and is never swallowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import runs

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups on this system")

SWALLOWS = """
import time
from nnunetv2_conemos.signals import cleanup, ended_by_signals
with ended_by_signals("conemos test"), cleanup(lambda: print("cleaned up", flush=True)):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except:
            pass
"""
FORKS = """
import os, time
from nnunetv2_conemos.signals import ended_by_signals
with ended_by_signals("conemos test"):
    print("ready", flush=True)
    while True:
        if (child := os.fork()) == 0:
            time.sleep(60)
        print(child, flush=True)
"""
COMPUTES = """
import ctypes
from nnunetv2_conemos import signals
signals.PATIENCE = 0.2
with signals.ended_by_signals("conemos test"):
    print("ready", flush=True)
    ctypes.CDLL(None).pause()
    ctypes.CDLL(None).sleep(60)
"""
SPAWNS = """
import multiprocessing, os, time
from nnunetv2_conemos.signals import end_with_parent
def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(60)
"""
RUNS = """
import os, sys
from pathlib import Path
from nnunetv2_conemos.subprocesses import run_logged
code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
run_logged([sys.executable, "-c", code], Path(sys.argv[1]), os.environ, lambda line: print(line, flush=True))
"""


def start(code: str, tmp_path: Path) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"  # what is spawned imports it
    script.write_text(code)
    words = [sys.executable, str(script), str(tmp_path / "log")]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def first_number(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return next(int(line) for line in process.stdout if line.strip().isdecimal())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_bare_except_does_not_swallow_a_signal(number: int, tmp_path: Path):
    process = start(SWALLOWS, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    assert process.communicate(timeout=20)[0] == "conemos test: interrupted\ncleaned up\n"
    assert process.returncode == 128 + number


def test_a_signal_while_forking_is_not_lost_and_no_child_is_left(tmp_path: Path):
    process = start(FORKS, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.terminate()
    children = [int(line) for line in process.communicate(timeout=20)[0].split() if line.isdecimal()]
    assert process.returncode == 143
    assert children
    assert not any(runs(child) for child in children)


def test_a_computation_in_a_library_does_not_hold_up_the_end(tmp_path: Path):
    process = start(COMPUTES, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.terminate()
    assert process.wait(20) == 143


@pytest.mark.parametrize("code", [SPAWNS, RUNS])
def test_what_was_started_ends_with_a_killed_parent(code: str, tmp_path: Path):
    process = start(code, tmp_path)
    child = first_number(process)
    process.kill()
    process.wait()
    assert not runs(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_imports_is_no_traceback(number: int):
    words = [sys.executable, "-X", "importtime", "-m", "nnunetv2_conemos.cli", "merge", "--help"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    next(line for line in process.stderr if "nnunetv2_conemos.commands" in line or "numpy" in line)
    process.send_signal(number)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "Traceback" not in printed
