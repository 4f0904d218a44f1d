"""Jobs beside the main thread, one after the other, of which only one may wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Run one job at a time in a thread, its parts in `workers` threads; with 0 workers, everything in the main thread.

    Threads do, because the libraries that resample let other threads run meanwhile.
    """

    def __init__(self, workers: int):
        self._stack = ExitStack()
        self._parts = self._stack.enter_context(ThreadPoolExecutor(workers)) if workers > 1 else None
        self._jobs = self._stack.enter_context(ThreadPoolExecutor(1)) if workers else None  # ends first: it uses parts
        self._last: Future[Any] | None = None

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """Begin a job when the one before has ended, and return at once; raises what the one before raised."""
        if self._last is not None:
            self._last.result()
        if self._jobs is not None:
            self._last = self._jobs.submit(job, *arguments)
            return self._last
        done: Future[T] = Future()
        done.set_result(job(*arguments))
        return done

    def map(self, function: Callable[..., T], *parts: Iterable[Any]) -> Iterator[T]:
        """Apply a function to the parts of the running job; results come in order."""
        return map(function, *parts) if self._parts is None else self._parts.map(function, *parts)
