"""Run commands, each with its own log, and end cleanly on SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from nnunetv2_conemos.doorway import VARIABLE, doorway_folder, trainer_path
from nnunetv2_conemos.errors import ConemosError

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def _exit(*_: object) -> None:
    sys.exit(143)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Exit on SIGTERM as on an exception within the block, so that unfinished files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def handler_is_set() -> bool:
    """Return whether this process is within `exit_on_sigterm`."""
    return signal.getsignal(signal.SIGTERM) is _exit


# A pool ends its processes by SIGTERM, some as soon as they are forked. Such a process must not run the handler of its
# parent: the signal is blocked while forking, and let through once the child has the default handler again.


def block_sigterm() -> None:
    if handler_is_set():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def unblock_sigterm() -> None:
    if handler_is_set():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def restore_default_in_child() -> None:
    if handler_is_set():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=block_sigterm, after_in_parent=unblock_sigterm, after_in_child=restore_default_in_child)


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
    with log.open("w") as file:
        program = shutil.which(words[0], path=environment["PATH"]) or words[0]
        inherited = () if lock is None else (lock,)
        command = [program, *words[1:]]
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, pass_fds=inherited, start_new_session=True
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                report(last_line(log))
        finally:
            end_group(process)
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
            process.wait(10)


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
