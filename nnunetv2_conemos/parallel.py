"""Run independent jobs on several cores, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from rich.progress import Progress

from nnunetv2_conemos.errors import FileError
from nnunetv2_conemos.signals import end_with_parent

T = TypeVar("T")
PROCESSES = "nnUNet_def_n_proc"  # nnU-Net's variable


def default_processes() -> int:
    """Return nnU-Net's number of processes (`nnUNet_def_n_proc`) or, where it is not set, that of usable cores."""
    configured = os.environ.get(PROCESSES, "")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(configured) if configured.isdecimal() and int(configured) > 0 else usable


@contextmanager
def progress_bar(items: Iterable[T], title: str, total: int | None = None) -> Iterator[Iterable[T]]:
    """Yield items with a progress bar that ends with the block, also where the block raises.

    That of `rich.progress.track` lives on until its generator is collected, and may block a bar begun before then.
    """
    with Progress() as progress:
        yield progress.track(items, total, description=title)


def in_processes(function: Callable[..., Any], jobs: Sequence[tuple], processes: int, title: str) -> list[Any]:
    """Return `function(*job)` for every job, in order, computed in `processes` processes (one: the current process).

    Processes are spawned, so the main module must be importable. The first job that raises cancels all jobs that have
    not begun. Raises OSError where a process was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        with progress_bar(jobs, title) as shown:
            return [function(*job) for job in shown]
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(processes, context, _start_worker) as pool:
        try:
            with progress_bar(pool.map(function, *zip(*jobs, strict=True)), title, len(jobs)) as shown:
                return list(shown)
        except BrokenProcessPool:
            raise FileError("a process was killed, most often for lack of memory. Use fewer with -np.") from None
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
        except BaseException:  # Ctrl-C does not wait for what is being computed
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)
