"""Commands in a loop in one process: memory stays flat, and no file, process or shared memory is left."""

from __future__ import annotations

import gc
import io
import os
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from attack.commands import COMPLETE, EXPORT, HIDE, MERGE, SPLIT, filled_in, lay_out
from attack.digests import tree
from attack.pairs import ALL, DECLARE_ALL, EVALUATE, SCORED, Writing
from nnunetv2_conemos import cli
from nnunetv2_conemos.datasets.check import check

HIDE_OTHER = ("hide", "706", *HIDE[2:])  # the kidneys become partially labelled by `declare`
OVERWRITING = (MERGE, HIDE_OTHER, SPLIT, EVALUATE, COMPLETE, EXPORT)
CYCLE = (*((*words, "--overwrite") for words in OVERWRITING), DECLARE_ALL, ("check",))
NEEDS = tuple(
    dict.fromkeys((*ALL, *SCORED, "tables", "nnUNet_preprocessed/Dataset702_Kidney", "nnUNet_raw/Dataset706_Nii"))
)
GROWTH = 0.05  # of the memory, over the last two thirds of the time


def soak(template: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Run the cycle for some time; return the figures, with what is wrong."""
    base, private = folder / "soak", folder / "soak_tmp"
    private.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(private)
    lay_out(Writing("soak", (), NEEDS, ()), template, base)
    shared = set(os.listdir("/dev/shm"))
    began, moments, memory, failed, wanted = time.monotonic(), [], [], [], None
    while time.monotonic() - began < seconds or len(memory) < 4:
        for words in CYCLE:
            printed = io.StringIO()
            with redirect_stdout(printed), redirect_stderr(printed):
                status = bool(check("701").errors) if words == ("check",) else cli.main(filled_in(words, base))
            if status:
                failed.append(f"{words[0]}: {status}: {printed.getvalue().strip()[-200:]}")
        gc.collect()
        moments.append(time.monotonic() - began)
        memory.append(resident())
        wanted = wanted or set(tree(base))
    third = len(memory) // 3
    slope = float(np.polyfit(moments[third:], memory[third:], 1)[0])  # MiB per second
    growth = slope * (moments[-1] - moments[third])
    problems = {
        "failed": "; ".join(dict.fromkeys(failed)),
        "memory grows": f"{growth:.0f} MiB" if growth > max(GROWTH * memory[third], 30) else "",
        "hidden files": ", ".join(sorted(tree(base, hidden=True))[:5]),
        "more files": ", ".join(sorted(set(tree(base)) ^ (wanted or set()))[:5]),
        "temporary files": ", ".join(sorted(str(path) for path in private.iterdir())[:5]),
        "processes": ", ".join(children()),
        "shared memory": ", ".join(sorted(own_shared_memory(set(os.listdir("/dev/shm")) - shared))[:5]),
    }
    return {
        "seconds": round(moments[-1]),
        "cycles": len(memory),
        "commands": len(memory) * len(CYCLE),
        "memory_mib": [round(memory[0]), round(memory[third]), round(memory[-1])],
        "mib_per_hour": round(3600 * slope, 1),
        "problems": {name: what for name, what in problems.items() if what},
    }


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def children() -> list[str]:
    """Return the processes that this one started and that live."""
    tasks = Path(f"/proc/self/task/{os.getpid()}/children")
    found = tasks.read_text().split() if tasks.exists() else []
    names = [Path(f"/proc/{process}/cmdline") for process in found]
    lines = [name.read_bytes().replace(b"\0", b" ").decode()[:100] for name in names if name.exists()]
    return [line for line in lines if "resource_tracker" not in line]  # Python's own, one per process


def own_shared_memory(names: set[str]) -> list[str]:
    """Return the names that this process maps or that nobody does."""
    maps = Path("/proc/self/maps").read_text()
    return [name for name in names if name in maps]
