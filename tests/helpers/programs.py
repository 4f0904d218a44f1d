"""The real commands, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from nnunetv2_conemos.doorway import VARIABLE, doorway_folder, trainer_path


def environment() -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        VARIABLE: trainer_path(os.environ.get(VARIABLE), doorway_folder()),
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "OMP_WAIT_POLICY": "passive",
    }


def command(*words: object) -> str:
    """Run one command; its output is part of the failure."""
    done = subprocess.run(list(map(str, words)), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def runs(process: int) -> bool:
    """Whether a process exists and is no zombie that its parent has still to collect."""
    stat = Path(f"/proc/{process}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.1)
    return time.monotonic() >= deadline
