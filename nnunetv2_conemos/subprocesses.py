"""Run commands, each with its own log, which end when this process does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO, cast

from nnunetv2_conemos.doorway import VARIABLE, doorway_folder, trainer_path
from nnunetv2_conemos.errors import ConemosError
from nnunetv2_conemos.signals import cleanup

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


GUARD = Path(__file__).with_name("guard.py")


class CommandError(ConemosError, RuntimeError):
    """Error of a command that failed; `log` is what it printed."""

    def __init__(self, message: str, log: str = ""):
        super().__init__(message)
        self.log = log


def run_logged(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    report: Callable[[str], object],
    lock: int | None = None,
) -> None:
    """Run one command and, while it runs, pass the last line of its log to `report`.

    `lock`: a file descriptor that the command keeps open, so that a lock on it lasts as long as the command does.
    Raises CommandError with the end of the log.
    """
    program = shutil.which(words[0], path=environment["PATH"]) or words[0]
    command, inherited = [program, *words[1:]], () if lock is None else (lock,)
    if hasattr(os, "killpg"):
        command = [sys.executable, "-I", "-S", str(GUARD), *command]
    with log.open("w") as file, ExitStack() as stack:
        started: list[subprocess.Popen] = []
        stack.enter_context(cleanup(lambda: [end_group(process) for process in started]))
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # the guard reads its end when this process is gone, however that happens
            stdout=file,
            stderr=file,
            env=environment,
            pass_fds=inherited,
            start_new_session=True,
        )
        started.append(process)
        stack.enter_context(closing(cast("IO[bytes]", process.stdin)))
        while process.poll() is None:
            time.sleep(0.2)
            report(last_line(log))
    if process.returncode:
        printed = log.read_text(errors="replace")
        tail = "\n".join(printed.splitlines()[-15:])
        message = f"`{' '.join(words)}` ended with status {process.returncode}; {log} ends with\n{tail}"
        raise CommandError(message, printed)


def end_group(process: subprocess.Popen) -> None:
    """End a command and the processes that it started, which would outlive it after an interruption."""
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # all have ended; macOS then raises PermissionError
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)


def last_line(log: Path) -> str:
    """Return the last line of a log, or the latest state of a progress bar in it."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "starting")


def environment_below(folder: Path, current: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of commands that work in `folder`: nnU-Net's folders, our trainers, our interpreter."""
    return {
        **current,
        **{name: str(folder / name) for name in FOLDERS},
        VARIABLE: trainer_path(current.get(VARIABLE), doorway_folder()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), current.get("PATH", "")]),
        "OMP_WAIT_POLICY": "passive",  # augmentation and other programs share the cores with torch's threads
        "COLUMNS": "120",
        "MPLBACKEND": "Agg",
    }
