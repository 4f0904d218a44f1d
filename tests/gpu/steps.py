"""Steps of a run: commands that start together and are ended at the step's limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path


def program(module: str, function: str, *words: object) -> list[str]:
    """Return the words that call the entry point of a command, whether or not its script is installed."""
    return [sys.executable, "-c", f"from {module} import {function} as main; main()", *map(str, words)]


def conemos(*words: object) -> list[str]:
    """Return the words of a `conemos` command."""
    return [sys.executable, "-m", "nnunetv2_conemos.cli", *map(str, words)]


@dataclass(frozen=True)
class Step:
    """Commands that run at once, each with a log of its own name, for at most `limit` seconds."""

    title: str
    limit: float
    commands: Mapping[str, list[str]]


@dataclass
class Run:
    """Run steps until the time is over; what is said is printed and kept in report.txt of the output folder."""

    folder: Path
    seconds: float
    environment: Mapping[str, str]
    failed: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds until the run has to be over."""
        return self.start + self.seconds - time.monotonic()

    def say(self, text: str) -> None:
        print(text, flush=True)
        with (self.folder / "report.txt").open("a") as file:
            file.write(f"{text}\n")

    def do(self, step: Step) -> float:
        """Run one step and return its seconds; each command that fails or is ended is said and remembered."""
        limit, begin = min(step.limit, self.left), time.monotonic()
        self.say(f"\n== {step.title} (at most {max(0, limit):.0f} s, {self.left:.0f} s left)")
        if limit < 1:
            self.note(step, "not begun, the time is over")
            return 0.0
        started = {name: self.begin(name, words) for name, words in step.commands.items()}
        try:
            for name, process in started.items():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, begin + limit - time.monotonic()))
                if process.poll() is None:
                    self.note(step, f"{name} was ended after {limit:.0f} s, its limit")
                elif process.returncode:
                    self.note(step, f"{name} ended with status {process.returncode}:\n{self.tail(name, 12)}")
        finally:
            for process in started.values():
                end(process)
        seconds = time.monotonic() - begin
        self.say(f"   took {seconds:.0f} s")
        return seconds

    def begin(self, name: str, words: list[str]) -> subprocess.Popen:
        """Start a command in a session of its own, so that its processes can be ended together."""
        with self.log(name).open("w") as file:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self.environment, start_new_session=True
            )

    def note(self, step: Step, text: str) -> None:
        self.failed.append(f"{step.title}: {text.splitlines()[0].rstrip(':')}")
        self.say(f"   FAILED: {text}")

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def tail(self, name: str, lines: int) -> str:
        """Return the last lines of a log."""
        text = self.log(name).read_text(errors="replace") if self.log(name).is_file() else ""
        return "\n".join(text.splitlines()[-lines:])


def end(process: subprocess.Popen) -> None:
    """End a command and whatever it started: politely, then at once."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
