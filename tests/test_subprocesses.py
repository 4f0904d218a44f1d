"""Commands with a log."""

import os
import sys
from pathlib import Path

import pytest
from programs import runs

from nnunetv2_conemos.subprocesses import CommandError, last_line, run_logged


def test_the_last_line_of_a_progress_bar(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"one\n" + b"x" * 5000 + b"\n10%\r50%\r90%\n\n")
    assert last_line(log) == "90%"
    log.write_bytes(b"")
    assert last_line(log) == "starting"


def test_it_tells_what_goes_on_and_ends_what_is_interrupted(tmp_path: Path):
    told = []

    def tell(line: str) -> None:
        told.append(line)
        if line == "ready":
            raise KeyboardInterrupt

    code = (
        "import os, subprocess, sys, time; print(os.getpid());"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid);"
        "print('ready', flush=True); time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        run_logged([sys.executable, "-c", code], tmp_path / "log", os.environ, tell)
    assert told[-1] == "ready"
    for process in (tmp_path / "log").read_text().split()[:2]:
        assert not runs(int(process)), "neither the command nor what it started"


def test_a_command_that_fails_is_an_error(tmp_path: Path):
    with pytest.raises(CommandError, match="status 3"):
        run_logged([sys.executable, "-c", "exit(3)"], tmp_path / "log", os.environ, print)
