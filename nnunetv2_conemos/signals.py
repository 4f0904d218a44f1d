"""End the process on SIGTERM, Ctrl-C and SIGHUP: at once, with what it started, leaving nothing unfinished behind.

The handler itself removes what is unfinished and ends the process. An exception would be lost in a hook or a
destructor, or be caught by a bare `except:` of a library, which would then go on with something else.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType

PATIENCE = 3.0  # seconds that the main thread has, if it computes in a library, until another one ends the process
ENDING = {getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)}
PR_SET_PDEATHSIG = 1  # of Linux

_cleanups: list[Callable[[], object]] = []
_once = threading.Lock()
_name = ""  # of the command that is running; empty outside of `ended_by_signals`
_watches_parent = False


@contextmanager
def cleanup(action: Callable[[], object]) -> Iterator[None]:
    """Run an action after the block, or when a signal ends the process within it; it must not mind running twice."""
    _cleanups.append(action)
    try:
        yield
    finally:
        try:
            action()
        finally:
            _cleanups.remove(action)


@contextmanager
def ended_by_signals(name: str) -> Iterator[None]:
    """Let a signal end the process within the block, with exit status 128 + its number; `name` is that of the command.

    Does nothing outside of the main thread. A signal that is ignored, such as SIGHUP under `nohup`, stays ignored.
    """
    global _name
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in ENDING}
    with _watched() if os.name == "posix" else nullcontext():
        _name = name
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _end)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            _name = ""


@contextmanager
def _watched() -> Iterator[None]:
    """Let a thread know of every signal, even while the main thread computes in a library."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_end_if_busy, args=(reader,), daemon=True).start()
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(writer)  # ends the thread


def _end_if_busy(reader: int) -> None:
    """End the process some time after a signal, since a handler waits until the main thread returns to Python."""
    received = os.read(reader, 1)
    while received and received[0] not in ENDING:
        received = os.read(reader, 1)
    os.close(reader)
    if received:
        time.sleep(PATIENCE)
        _end(received[0])


def _end(number: int, _: FrameType | None = None) -> None:
    """End what this process started, clean up, and exit."""
    if not _once.acquire(blocking=False):
        time.sleep(60)  # another thread is ending the process
    if threading.current_thread() is threading.main_thread():
        for other in ENDING:
            signal.signal(other, signal.SIG_IGN)
    with suppress(OSError):
        os.write(2, f"{_name}: interrupted\n".encode())
    end_children()
    for action in reversed(_cleanups.copy()):
        with suppress(Exception):
            action()
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(Exception):  # a stream that was being written to cannot be flushed
            stream.flush()
        with suppress(OSError):
            if os.isatty(descriptor):
                os.write(descriptor, b"\x1b[?25h")  # progress bars hide the cursor
    os._exit(128 + number)


def end_children() -> None:
    """Kill the processes of `multiprocessing` that this process has started, and wait for their end."""
    multiprocessing = sys.modules.get("multiprocessing")
    children = multiprocessing.active_children() if multiprocessing else []
    for child in children:
        child.kill()
    for child in children:
        child.join(5)


def end_with_parent() -> None:
    """Let a process of `multiprocessing` end when its parent does, however that ends; Ctrl-C is for the parent.

    Does nothing in any other process, and when called again.
    """
    global _watches_parent
    multiprocessing = sys.modules.get("multiprocessing")
    parent = multiprocessing.parent_process() if multiprocessing else None
    if parent is None or _watches_parent:
        return
    _watches_parent = True
    from multiprocessing.connection import wait

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a traceback

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# A forked process must not run the handlers of its parent. A signal that arrives between the fork and the first line
# of Python in the child would be lost there, and a pool that ends its processes by SIGTERM would wait for ever: signals
# are blocked while forking, and let through once the child has the default handlers again.

_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None
_parent = os.getpid()


def _before_fork() -> None:
    global _parent
    if _name:
        _parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


def _after_in_parent() -> None:
    if _name:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _after_in_child() -> None:
    global _name
    if not _name:
        return
    _name = ""
    _cleanups.clear()  # they are the parent's
    signal.set_wakeup_fd(-1)
    for number in ENDING:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != _parent:  # it ended before the line above
            os._exit(1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
