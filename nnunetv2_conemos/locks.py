"""Let one command at a time write a target; the lock ends with the process, however that ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nnunetv2_conemos.errors import FileError
from nnunetv2_conemos.signals import cleanup

try:
    import fcntl
except ImportError:  # Windows: no locks
    fcntl = None

NO_LOCKS = {getattr(errno, name, None) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")}  # of a file system

_held: dict[Path, int] = {}  # lock file -> its descriptor, of the locks that this process holds


def lock_file_of(target: Path) -> Path:
    """Return the file beside a target that is locked while the target is written."""
    return target.parent.resolve() / f".{target.name}.lock"


@contextmanager
def locked(file: Path, target: Path) -> Iterator[int | None]:
    """Hold a lock on `file` within the block, and yield its descriptor; within another such block, do nothing.

    Without locks (Windows), yield None. Processes that inherit the descriptor keep the lock as long as they run. Raises
    FileError, naming the process that writes `target`, where the lock is taken.
    """
    if fcntl is None or file in _held:
        yield _held.get(file)
        return
    missing = [folder for folder in file.parents if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)

    def release() -> None:
        if file in _held:
            with suppress(OSError):
                file.unlink()
            os.close(_held.pop(file))
        for folder in missing:
            with suppress(OSError):  # it is in use
                folder.rmdir()

    with cleanup(release):
        yield _acquire(file, target)


def _acquire(file: Path, target: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        if not try_lock(descriptor):
            holder = os.read(descriptor, 500).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise FileError(f"{target} is being written by {holder}. Wait for it, or end it, then run this again.")
        with suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                break
        os.close(descriptor)  # the process that held it has just removed it
    _held[file] = descriptor
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{this_process()}\n".encode())
    return descriptor


def this_process() -> str:
    """Return how to name this process to a user: `process 4711 (conemos merge) on HOST`."""
    words = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    return f"process {os.getpid()} ({words}) on {socket.gethostname()}"


def try_lock(descriptor: int) -> bool:
    """Lock an open file unless another process has; return whether it is ours, also where there are no locks at all."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def is_abandoned(file: Path) -> bool:
    """Return whether nobody holds a lock on a file any more; False where that cannot be known."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
