"""The memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def process_peak() -> float | None:
    """Return the largest resident memory of this process in MiB; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would begin with the memory of the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
