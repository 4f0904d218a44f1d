"""Signals to a command that was started from a shell, at any time: also while it imports."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from attack.children import GRACE, Ended, wait_for_session
from attack.commands import COMMANDS, filled_in
from attack.faults import SIGNALS, Fault, Prepared, again, prepare, problems_after, problems_after_rerun

NAME = "merge, from a shell"


def start(prepared: Prepared) -> subprocess.Popen:
    """Start the command in a process and session of its own."""
    words = [sys.executable, "-m", "nnunetv2_conemos.cli", *filled_in(prepared.command.words, prepared.base)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def ended(process: subprocess.Popen, limit: float) -> Ended:
    """Wait for a command and all of its session."""
    began, status, printed = time.monotonic(), None, ""
    try:
        printed, _ = process.communicate(timeout=limit)
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    left = wait_for_session(process.pid, GRACE)
    return Ended(status, printed if "nnunetv2_conemos" in printed else "", left, time.monotonic() - began)


def attack(job: tuple[Path, Path, int, int]) -> list[dict[str, Any]]:
    """Send signals to the command at random times of its life; return what happened."""
    template, folder, number, seed = job
    prepared = prepare(COMMANDS["merge"], template, folder / "cold")
    again(prepared.start, prepared.base)
    began = time.monotonic()
    ended(start(prepared), 600)
    usual, rng, records = time.monotonic() - began, random.Random(f"{seed} cold"), []
    names = [name for name in SIGNALS if name != "KILL"]
    for i in range(number):
        again(prepared.start, prepared.base)
        name, group, moment = names[i % 2], i % 4 > 1, rng.uniform(0.02, 1.0) * usual
        process = start(prepared)
        time.sleep(moment)
        running = process.poll() is None
        if running:
            (os.killpg if group else os.kill)(process.pid, SIGNALS[name][0])
        end = ended(process, 120)
        fault = Fault(f"{name}{' group' if group else ''}" if running else "none", round(1000 * moment))
        problems = problems_after(prepared, fault, end)
        problems |= problems_after_rerun(prepared, ended(start(prepared), 600))
        what = {"command": NAME, "fault": fault.what, "at": fault.at, "status": end.status, "problems": problems}
        records.append(what | ({"printed": end.printed[-600:]} if problems else {}))
    return records
