"""Independent jobs on several cores, behind a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
from rich.progress import track

PROCESSES = "nnUNet_def_n_proc"  # nnU-Net's variable


def default_processes() -> int:
    """Return the number of processes that nnU-Net is set to use (`nnUNet_def_n_proc`), or else of usable cores."""
    configured = os.environ.get(PROCESSES, "")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(configured) if configured.isdecimal() and int(configured) > 0 else usable


def in_processes(function: Callable[..., Any], jobs: Sequence[tuple], processes: int, title: str) -> list[Any]:
    """Return `function(*job)` of every job, in order, computed in so many processes; a single one is this one.

    Processes are spawned, so the main module must be importable. The first job that raises ends it: jobs that have not
    begun are not begun any more. Raises OSError where a process was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        return [function(*job) for job in track(jobs, title)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        try:
            return list(track(pool.map(function, *zip(*jobs, strict=True)), title, len(jobs)))
        except BrokenProcessPool:
            raise OSError("a process was killed, most often for lack of memory. Use fewer with -np.") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
