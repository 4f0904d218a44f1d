"""Faults at the n-th operation on files: the process is killed or ended there, or the disk is full.

A command runs in a forked process, which has imported everything already.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

OPERATIONS = ("open", "replace", "rename", "link", "symlink", "unlink", "mkdir", "rmdir", "fsync")
FULL = 0  # as a signal: the disk is full from then on, for everything that needs space


def strike(number: int, fault: int, below: Path) -> None:
    """Let the operation with this number (from 1) on a path below a folder fail."""
    done = 0

    def wrap(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def operation(*args, **options):
            nonlocal done
            place = args[0]
            mode = args[1] if len(args) > 1 else options.get("mode", "r")
            writes = name != "open" or (mode & (os.O_WRONLY | os.O_RDWR) if owner is os else set(mode) & set("wax+"))
            if writes and (name == "fsync" or str(place).startswith(str(below))):
                done += 1
                if done == number and fault:
                    os.kill(os.getpid(), fault)
                elif fault == FULL and done >= number and name in ("open", "mkdir", "symlink", "link", "fsync"):
                    raise OSError(errno.ENOSPC, "No space left on device", *(() if name == "fsync" else (place,)))
            return real(*args, **options)

        setattr(owner, name, operation)

    for name in OPERATIONS:
        wrap(os, name)
    wrap(io, "open")


def run_forked(command: Callable[[], int], number: int, fault: int, below: Path, log: Path) -> int:
    """Run a command with a fault in a process of its own; return its exit status, or the negative of its signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        sys.stdout = sys.stderr = os.fdopen(output, "w")
        status = 99
        try:
            strike(number, fault, below)
            status = command()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


KILL, TERM = signal.SIGKILL, signal.SIGTERM
