"""Faults at every file operation of every command that writes, and of checkpoints.

A command is killed, by each signal, alone and with its group, at the n-th operation on a file; or from there on the
disk is full; or files may have n bytes (beyond them, writing fails, or kills: a kill in the middle of a write); or it
runs on a file system with n bytes left. Afterwards each part of its result must be absent, the old one or complete,
everything else as it was, and the same command must finish and leave what an undisturbed run leaves: the same files,
no other, and no process.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attack.children import Ended, run
from attack.commands import Writing, filled_in, lay_out, trainer_of, work_of
from attack.digests import below, tree
from nnunetv2_conemos import cli

SIGNALS = {
    "KILL": (signal.SIGKILL, (-signal.SIGKILL,)),
    "TERM": (signal.SIGTERM, (143, -signal.SIGTERM)),
    "INT": (signal.SIGINT, (130, -signal.SIGINT)),
}
AT_OPERATION = (*SIGNALS, *(f"{name} group" for name in SIGNALS), "disk full")
AT_BYTE = ("file size limit", "KILL in a write", "full file system")
WRITING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime")
RESUMED = ("complete", "import")  # leave on purpose what they go on with


class Fault(NamedTuple):
    """What happens (`AT_OPERATION`, `AT_BYTE`), and at which operation or byte."""

    what: str
    at: int


class Prepared(NamedTuple):
    """A command before its faults: the folders as it finds and as it leaves them, its operations, its largest file."""

    command: Writing
    base: Path
    start: Path
    before: dict[str, str]
    after: dict[str, str]
    hidden: dict[str, str]
    operations: int
    largest: int


class Trap:
    """Counts the file operations of this process below a folder, and strikes at one of them."""

    def __init__(self, base: Path, fault: Fault | None):
        self.base, self.fault, self.process = str(base), fault, 0
        self.seen = mmap.mmap(-1, 8)  # shared with the parent

    def arm(self) -> None:
        """Begin to count."""
        self.process = os.getpid()
        sys.addaudithook(self._look)

    @property
    def count(self) -> int:
        return int.from_bytes(self.seen[:8], "little")

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event in WRITING or (event == "open" and bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
        if (not writes and event != "open") or os.getpid() != self.process:
            return
        if event == "open" and not str(os.fsdecode(args[0]) if isinstance(args[0], bytes) else args[0]).startswith(
            self.base
        ):
            return
        self.seen[:8] = (self.count + 1).to_bytes(8, "little")
        if self.fault is not None:
            self._strike(self.fault, event, writes)

    def _strike(self, fault: Fault, event: str, writes: bool) -> None:
        name, _, group = fault.what.partition(" ")
        if name in SIGNALS and self.count == fault.at:
            (os.killpg if group else os.kill)(self.process, SIGNALS[name][0])
        elif fault.what == "disk full" and self.count >= fault.at and writes and event not in ("os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def prepare(command: Writing, template: Path, base: Path) -> Prepared:
    """Run a command undisturbed, twice, and record what it leaves."""
    lay_out(command, template, base)
    if not command.words:
        _two_states_of_trainer(command, base)
    elif command.old:
        made = run(lambda: cli.main(filled_in(command.old, base)))
        if made.status:
            raise RuntimeError(f"{command.name}: what it replaces cannot be made:\n{made.printed}")
    start = base.with_name(f"{base.name}_start")
    shutil.rmtree(start, ignore_errors=True)
    shutil.copytree(base, start, symlinks=True)
    before, states, trap = tree(base), [], Trap(base, None)
    for _ in range(2):
        again(start, base)
        trap = Trap(base, None)
        ended = run(partial(disturbed, work_of(command, base), trap))
        if ended.status or ended.left:
            raise RuntimeError(
                f"{command.name}: undisturbed, it ends with {ended.status}, {ended.left}:\n{ended.printed}"
            )
        states.append((tree(base), tree(base, hidden=True)))
    if states[0] != states[1]:
        differing = [name for name in states[0][0] if states[1][0].get(name) != states[0][0][name]]
        raise RuntimeError(f"{command.name}: two undisturbed runs differ in {differing}")
    (after, hidden), changed = states[0], {name for name in states[0][0] if before.get(name) != states[0][0][name]}
    largest = max((base / name).stat().st_size for name in changed)
    return Prepared(command, base, start, before, after, hidden, trap.count, largest)


def _two_states_of_trainer(command: Writing, base: Path) -> None:
    """Save a checkpoint, then move the weights, so that the next one differs."""
    trainer = trainer_of(command.name.split()[-1])
    trainer.save_checkpoint(str(base / command.parts[0]))
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(1.0)


def again(start: Path, base: Path) -> None:
    """Make the base folder as it was before the command."""
    for path in base.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(start, base, symlinks=True, dirs_exist_ok=True)


def disturbed(work: Callable[[], int | None], trap: Trap) -> int | None:
    """Run a command in this child, with a fault."""
    if trap.fault is not None and trap.fault.what in ("file size limit", "KILL in a write"):
        kills = trap.fault.what == "KILL in a write"
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kills else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (trap.fault.at, resource.RLIM_INFINITY))
    trap.arm()
    return work()


def plan(prepared: Prepared, number: int, seed: int, tmpfs: bool) -> list[Fault]:
    """Draw the faults of a command: spread over its operations and over the bytes of its largest file."""
    rng = random.Random(f"{seed} {prepared.command.name}")
    kinds = [kind for kind in (*AT_OPERATION, *AT_BYTE) if tmpfs or kind != "full file system"]
    if not prepared.operations:  # torch writes without Python
        kinds = [kind for kind in kinds if kind in AT_BYTE]
    faults = []
    for i in range(number):
        kind = kinds[i % len(kinds)]
        most = prepared.operations if kind in AT_OPERATION else prepared.largest
        faults.append(
            Fault(kind, max(1, round((rng.random() + i // len(kinds)) * len(kinds) / number * most) % (most + 1)))
        )
    return faults


def inflict(prepared: Prepared, fault: Fault) -> dict[str, Any]:
    """Inflict one fault; return what happened, with all problems found."""
    base, work = prepared.base, work_of(prepared.command, prepared.base)
    trap = Trap(base, fault)
    with file_system_of(base, fault):
        again(prepared.start, base)
        if fault.what == "full file system":
            _leave_bytes(base, fault.at)
        ended = run(lambda: disturbed(work, trap))
        problems = problems_after(prepared, fault, ended)
        if fault.what == "full file system":
            _mount(base, "size=1g", remount=True)
        if not problems.get("outside changed"):
            problems |= problems_after_rerun(prepared, run(work))
    what = {"command": prepared.command.name, "fault": fault.what, "at": fault.at, "status": ended.status}
    return what | {"problems": problems, "printed": ended.printed[-600:] if problems else ""}


def problems_after(prepared: Prepared, fault: Fault, ended: Ended) -> dict[str, str]:
    """Return what is wrong directly after a fault: kind -> detail."""
    now, command = tree(prepared.base), prepared.command
    problems = {}
    torn = [part for part in command.parts if state_of(prepared, now, part) == "torn"]
    if torn:
        problems["torn"] = ", ".join(torn)
    own = {name for part in command.parts for name in below(now | prepared.before | prepared.after, part)}
    changed = [
        name for name in {**now, **prepared.before} if name not in own and now.get(name) != prepared.before.get(name)
    ]
    if changed:
        problems["outside changed"] = ", ".join(changed[:5])
    if ended.left:
        problems["process left"] = ", ".join(ended.left)
    if ended.status is None:
        problems["hung"] = f"after {ended.seconds:.0f} s"
    elif wrong := wrong_status(fault, ended, complete=all(state_of(prepared, now, p) == "new" for p in command.parts)):
        problems["wrong status"] = wrong
    if "Traceback" in ended.printed and command.words:
        problems["traceback"] = ended.printed.strip().splitlines()[-1][:200]
    if not fault.what.startswith("KILL") and ended.status not in (None, -signal.SIGTERM, -signal.SIGINT):
        left = set(tree(prepared.base, hidden=True)) - set(prepared.hidden)
        if left and not command.name.startswith(RESUMED):
            problems["leftover"] = ", ".join(sorted(left)[:5])
    return problems


def state_of(prepared: Prepared, now: dict[str, str], part: str) -> str:
    """Return whether a part of the result is the `old` one (or absent, as before), the `new` one, or `torn`."""
    here = below(now, part)
    if here == below(prepared.after, part):
        return "new"
    return "old" if here == below(prepared.before, part) or not here else "torn"


def wrong_status(fault: Fault, ended: Ended, complete: bool) -> str:
    """Return what is wrong with the exit status of a command after a fault."""
    status, name = ended.status, fault.what.partition(" ")[0]
    if fault.what in AT_OPERATION and name in SIGNALS:
        return "" if status in SIGNALS[name][1] else f"{status} after SIG{name}, expected {SIGNALS[name][1]}"
    if status == 0 and not complete:
        return "0, but the result is not complete"
    return ""


def problems_after_rerun(prepared: Prepared, ended: Ended) -> dict[str, str]:
    """Return what is wrong after the same command ran again."""
    problems, now = {}, tree(prepared.base)
    done = ended.status == 0 or (ended.status == 2 and "exists" in ended.printed)
    if not done:
        problems["rerun fails"] = f"{ended.status}: {ended.printed.strip()[-300:]}"
    elif now != prepared.after:
        names = [name for name in {**now, **prepared.after} if now.get(name) != prepared.after.get(name)]
        problems["rerun differs"] = ", ".join(names[:5])
    left = set(tree(prepared.base, hidden=True)) - set(prepared.hidden)
    if left:
        problems["left after rerun"] = ", ".join(sorted(left)[:5])
    if ended.left:
        problems["process left after rerun"] = ", ".join(ended.left)
    return problems


@contextmanager
def file_system_of(base: Path, fault: Fault) -> Iterator[None]:
    """Within the block, the base folder is a file system of its own, if the fault is a full one."""
    if fault.what != "full file system":
        yield
        return
    _mount(base, "size=1g")
    try:
        yield
    finally:
        subprocess.run(["umount", str(base)], check=True)


def _mount(folder: Path, options: str, remount: bool = False) -> None:
    words = ["mount", "-t", "tmpfs", "-o", f"remount,{options}" if remount else options, "tmpfs", str(folder)]
    subprocess.run(words, check=True, capture_output=True)


def _leave_bytes(base: Path, number: int) -> None:
    """Shrink a file system to what it holds, and `number` bytes more, in whole pages."""
    facts = os.statvfs(base)
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    _mount(base, f"size={used + max(number, 4096)}", remount=True)


def tmpfs_possible(folder: Path) -> bool:
    """Return whether this process may mount file systems."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(subprocess.CalledProcessError, OSError):
        _mount(folder, "size=1m")
        subprocess.run(["umount", str(folder)], check=True)
        return True
    return False


def attack_command(job: tuple[Writing, Path, Path, int, int, bool]) -> list[dict[str, Any]]:
    """Inflict a number of faults on one command; write and return them."""
    command, template, folder, number, seed, tmpfs = job
    name = command.name.replace(" ", "_")
    try:
        prepared = prepare(command, template, folder / name)
    except RuntimeError as error:
        return [
            {"command": command.name, "fault": "none", "at": 0, "status": None, "problems": {"undisturbed": str(error)}}
        ]
    done = [inflict(prepared, fault) for fault in plan(prepared, number, seed, tmpfs)]
    (folder / f"{name}.json").write_text(json.dumps(done, indent=1))
    for path in (prepared.base, prepared.start):
        shutil.rmtree(path, ignore_errors=True)
    return done
