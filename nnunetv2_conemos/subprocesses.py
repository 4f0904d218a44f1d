"""Commands run one after the other, each with a log of its own."""

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


def exit_on_sigterm(*_: object) -> None:
    sys.exit(143)


def ours() -> bool:
    return signal.getsignal(signal.SIGTERM) is exit_on_sigterm


def hold_back() -> None:
    if ours():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def let_through() -> None:
    if ours():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def default_in_child() -> None:
    """Pools end their processes by the same signal, some as soon as they are forked: it waits until here."""
    if ours():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=hold_back, after_in_parent=let_through, after_in_child=default_in_child)


@contextmanager
def clean_end() -> Iterator[None]:
    """SIGTERM ends what runs within as an exception would, so that what is unfinished is cleared away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, exit_on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class CommandError(RuntimeError):
    """A command ended with an error; `log` is what it printed."""

    def __init__(self, message: str, log: str = ""):
        super().__init__(message)
        self.log = log


def run_logged(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    tell: Callable[[str], object],
    lock: int | None = None,
) -> None:
    """Run one command, telling the last line of its log all the while; raises CommandError with the end of the log.

    `lock`: a file descriptor that the command keeps open, so that a lock on it lasts as long as the command does.
    """
    with log.open("w") as file:
        program = shutil.which(words[0], path=environment["PATH"]) or words[0]
        kept = () if lock is None else (lock,)
        command = [program, *words[1:]]
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, pass_fds=kept, start_new_session=True
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                tell(last_line(log))
        finally:
            end(process)
    if process.returncode:
        printed = log.read_text(errors="replace")
        tail = "\n".join(printed.splitlines()[-15:])
        message = f"`{' '.join(words)}` ended with status {process.returncode}; {log} ends with\n{tail}"
        raise CommandError(message, printed)


def end(process: subprocess.Popen) -> None:
    """End a command that was interrupted, and the processes that it started and, ended by a signal, would leave."""
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):  # all have ended; macOS says it by the second
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


def last_line(log: Path) -> str:
    """The last line of a log, or what a progress bar wrote over it last."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "starting")


def own_environment(folder: Path, current: Mapping[str, str]) -> dict[str, str]:
    """Variables for commands that keep to `folder`: nnU-Net's three folders below it, our trainers and commands."""
    return {
        **current,
        **{name: str(folder / name) for name in FOLDERS},
        VARIABLE: trainer_path(current.get(VARIABLE), doorway_folder()),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), current.get("PATH", "")]),
        "OMP_WAIT_POLICY": "passive",  # augmentation and other programs share the cores with torch's threads
        "COLUMNS": "120",
        "MPLBACKEND": "Agg",
    }
