"""Forked children of this process, which has imported everything: a command in one of them starts in milliseconds."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LIMIT = 120.0  # seconds that a command may take
PIPE_SIZE = 1 << 20
GRACE = 15.0  # seconds in which what a command started must end after it


class Ended(NamedTuple):
    """How a child ended: its exit status (minus the signal that killed it; None: it hung), and what it printed.

    `left`: command lines of processes that outlived it.
    """

    status: int | None
    printed: str
    left: tuple[str, ...]
    seconds: float


class Child(NamedTuple):
    """A running child: its process id, which is also that of its session, and the pipe that it prints into."""

    process: int
    pipe: int


def start(work: Callable[[], int | None]) -> Child:
    """Fork a child that leads a session of its own and exits with what `work` returns.

    It prints into a pipe, not into a file, which a limit on file sizes would concern.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return Child(process, reading)
    status = 70
    try:
        os.close(reading)
        os.setsid()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        status = int(work() or 0)
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except KeyboardInterrupt:
        status = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(child: Child, limit: float = LIMIT) -> Ended:
    """Wait for a child and for all processes of its session; what does not end in time is killed, and reported."""
    began = time.monotonic()
    status: int | None = None
    left: tuple[str, ...] = ()
    printed = b""
    os.set_blocking(child.pipe, False)
    try:
        while status is None and time.monotonic() - began < limit:
            printed = (printed + _read(child.pipe))[-PIPE_SIZE:]  # a full pipe would stop the child
            ended, code = os.waitpid(child.process, os.WNOHANG)
            if ended:
                status = os.waitstatus_to_exitcode(code)
            else:
                time.sleep(0.01)
    finally:
        left = wait_for_session(child.process, GRACE if status is not None else 0)
        if status is None:
            os.waitpid(child.process, 0)
    printed += _read(child.pipe)
    os.close(child.pipe)
    return Ended(status, printed.decode(errors="replace"), left, time.monotonic() - began)


def _read(pipe: int) -> bytes:
    """Return what can be read from a pipe now."""
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(pipe, PIPE_SIZE):
            parts.append(part)
    return b"".join(parts)


def run(work: Callable[[], int | None], limit: float = LIMIT) -> Ended:
    """Run `work` in a child and wait for it."""
    return wait(start(work), limit)


def in_workers(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield `function(job)` of all jobs, as they are done, in forked processes, which may fork again."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for done in as_completed([pool.submit(function, job) for job in jobs]):
            yield done.result()


def wait_for_session(session: int, seconds: float) -> tuple[str, ...]:
    """Wait until a session has no process; return and kill what is left then."""
    began = time.monotonic()
    while (members := session_members(session)) and time.monotonic() - began < seconds:
        time.sleep(0.02)
    names = tuple(command_line(process) for process in members)
    for process in members:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return names


def session_members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


def command_line(process: int) -> str:
    """Return the command line of a process."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    return "?"
