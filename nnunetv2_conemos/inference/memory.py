"""Whether memory suffices for a chunk of labels, said before it is filled, and in words where it did not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path

import torch

from nnunetv2_conemos.errors import ShortOfMemoryError

BYTES = 8  # for a voxel and label: sums in half precision, a check of them for infinity, and the chunk before
GIB = 2**30
MEMINFO = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Return the bytes of memory that are free or can be freed, swap included; all of it outside of Linux, or None."""
    with suppress(OSError, KeyError, ValueError):
        rows = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return 1024 * sum(int(rows[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


@contextmanager
def memory_for(case: str, labels: int, shape: Sequence[int]) -> Iterator[None]:
    """Check that the maps of some labels fit into memory, then run the block that fills them.

    Raises ShortOfMemoryError, with what is needed and there and the option to set, before or when memory is short.
    """
    voxels, there = prod(shape), available_memory()
    needed = labels * voxels * BYTES
    if there is not None and needed > there:
        raise short_of_memory(case, labels, shape, there)
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise short_of_memory(case, labels, shape, available_memory()) from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # of torch on a CPU
            raise
        raise short_of_memory(case, labels, shape, available_memory()) from None


def short_of_memory(case: str, labels: int, shape: Sequence[int], there: int | None) -> ShortOfMemoryError:
    """Return the error for labels of a case whose maps do not fit into memory."""
    voxels = prod(shape)
    needed = labels * voxels * BYTES / GIB
    found = "" if there is None else f", found {there / GIB:.1f} GiB of memory"
    fewer = min(labels - 1, labels // 2 if there is None else there // (voxels * BYTES))
    remedy = (
        f"Set --labels-at-once to {fewer} or less."
        if fewer > 0
        else "Take a machine with more memory, -device cpu for a GPU without enough of it, or a lower resolution (-c)."
    )
    return ShortOfMemoryError(
        f"case '{case}': {labels} label(s) at once need about {needed:.1f} GiB ({labels} labels x "
        f"{' x '.join(map(str, shape))} voxels x {BYTES} bytes){found}. {remedy}"
    )
