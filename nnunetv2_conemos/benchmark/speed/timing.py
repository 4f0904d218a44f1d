"""Time and memory of calls that take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

MIB = 2**20
Work = Callable[[], None]


class Measured(NamedTuple):
    """Median seconds of a call (None: it failed), and why there are none, or fewer than wanted."""

    seconds: float | None
    note: str = ""


def take_turns(
    work: Mapping[Any, Work], device: str, rounds: int, cap: float, report: Callable[[str], object]
) -> dict[Any, Measured]:
    """Return the median seconds of each call over rounds in which all take turns, so that other load affects all alike.

    Every call was made before. One that takes longer than `cap` is not repeated; one that runs out of memory is noted.
    """
    times: dict[Any, list[float]] = {name: [] for name in work}
    notes = dict.fromkeys(work, "")
    for number in range(rounds):
        for name, call in work.items():
            if notes[name]:
                continue
            seconds, notes[name] = guarded(call, device)
            times[name] += [] if seconds is None else [seconds]
            if seconds is not None and seconds > cap:
                notes[name] = f"over the cap of {cap:g} s, measured once"
        report(f"round {number + 1} of {rounds}")
    return {name: Measured(median(taken) if taken else None, notes[name]) for name, taken in times.items()}


def guarded(call: Work, device: str) -> tuple[float | None, str]:
    """Return the seconds of a call, or None and a note where memory does not suffice or torch cannot compute it."""
    synchronise(device)
    start = time.perf_counter()
    try:
        call()
        synchronise(device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, "out of memory"
    except RuntimeError as error:
        message = str(error).strip() or type(error).__name__
        return None, "out of memory" if "can't allocate memory" in message else f"failed: {message.splitlines()[0]}"
    return time.perf_counter() - start, ""


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def allocated(device: str) -> int:
    """Return the bytes that torch holds on a GPU; 0 on other devices."""
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def first_call(call: Work, device: str, base: int) -> tuple[float | None, str]:
    """Make a call before it is timed; return its peak memory in MiB above `base`, and a note where it failed.

    On a GPU the call is made twice, and its memory is that of the second: the first compiles, tries out algorithms,
    and makes the optimiser's state. On a CPU it is the memory of the tensors that are kept for the backward pass, None
    for a call that keeps none.
    """
    if device != "cuda":
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            _, note = guarded(call, device)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / MIB or None, note
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        seconds, note = guarded(call, device)
        if seconds is None:
            return None, note
    return (torch.cuda.max_memory_allocated() - base) / MIB, ""
