"""Fuzzed inputs: each command and function that reads something succeeds, or refuses with one of our errors.

Inputs are mutations of valid ones, drawn from a seed: input i of a seed is the same in every run. An input fails
where an error is not ours or a traceback is printed; where the message names neither file nor case nor key; where what
is damaged is accepted; where something outside the result changed, or part of a refused result is left; where it takes
too long.
"""

from __future__ import annotations

import faulthandler
import io
import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from attack.children import in_workers, start, wait
from attack.folders import Restored
from attack.inputs import KINDS, Attempt, write_trained_on
from attack.starting_points import use, write_light
from nnunetv2_conemos import cli
from nnunetv2_conemos.errors import ConemosError

AT_ONCE = 500  # inputs that one child tries
LIMIT = 30  # seconds for one input
KEPT = 20_000  # bytes of the largest failed input that is kept
RESULTS = ("nnUNet_raw/Dataset780_Out", "out", "nnUNet_results/Dataset999_World")


class TooLong(BaseException):
    """Raised by the alarm of an input that takes too long."""


class Fuzzer:
    """Tries inputs in a folder of its own, and restores that folder after each."""

    def __init__(self, folder: Path, seed: int, kept: Path | None = None):
        self.kept = kept
        template = template_of(folder)
        shutil.rmtree(template, ignore_errors=True)
        template.mkdir(parents=True)
        write_light(template)
        write_trained_on(template)
        self.seed, self.folder = seed, Restored(folder, template, RESULTS)
        self.base = self.folder.base
        use(self.base)
        os.environ |= {"nnUNet_def_n_proc": "1"}
        os.chdir(self.base)  # where relative paths of odd names lead

    def attempt(self, number: int) -> dict[str, Any]:
        """Try one input; return what it was and how it ended, under `problem` what is wrong with that."""
        rng = random.Random(f"{self.seed} {number}")
        kind = rng.choices(list(KINDS), [maker.share for maker in KINDS.values()])[0]
        made = KINDS[kind].make(rng, self.base)
        began = time.monotonic()
        outcome, message, where = carry_out(made)
        problem = problem_with(outcome, message, made) or self._wrong_in_folders(outcome, made)
        if problem and self.kept:
            self._keep(number, made)
        self.folder.restore()
        record = {"input": number, "kind": kind, "what": made.what, "outcome": outcome, "problem": problem}
        record["seconds"] = round(time.monotonic() - began, 2)
        return record | ({"message": message[-500:], "where": where} if problem else {})

    def _keep(self, number: int, made: Attempt) -> None:
        """Copy the mutated file of an input that failed, if it is small."""
        assert self.kept
        for name in made.wrote:
            file = self.base / name
            if file.is_file() and file.stat().st_size < KEPT:
                self.kept.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.kept / f"{number}_{file.name}")

    def _wrong_in_folders(self, outcome: str, made: Attempt) -> str:
        """Return what is wrong with what is in the folders now."""
        changed = [name for name in self.folder.changed() if name not in made.wrote and not name.startswith(RESULTS)]
        if made.names_result:
            changed = [
                name for name in changed if name in self.folder.stamps
            ]  # new files may be wherever the words say
        changed = [name for name in changed if not (outcome == "success" and name in made.rewritten)]
        if changed:
            return f"changed {', '.join(sorted(changed)[:3])}"
        if outcome == "refused" and made.writes_folder and os.path.lexists(self.base / RESULTS[0]):
            return "left part of a refused result"
        return ""


def template_of(folder: Path) -> Path:
    """Return the folder of the datasets that a fuzzer begins with."""
    return folder.with_name(f"{folder.name}_template")


def carry_out(made: Attempt) -> tuple[str, str, str]:
    """Run an attempt; return `success`, `refused`, `foreign` or `hung`, the message, and where it was raised."""
    printed = io.StringIO()
    try:
        with time_limit(LIMIT), redirect_stdout(printed), redirect_stderr(printed):
            findings = made.call()
        return ("refused" if findings else "success"), str(findings or ""), ""
    except ConemosError as error:
        return "refused", str(error), location(error)
    except TooLong as error:
        return "hung", "".join(traceback.format_tb(error.__traceback__)[-6:]), location(error)
    except SystemExit as leave:
        outcome = {None: "success", 0: "success", 1: "refused", 2: "refused"}.get(leave.code, "foreign")
        return outcome, printed.getvalue() or str(leave.code), "argparse"
    except Exception as error:
        return "foreign", f"{type(error).__name__}: {error}", location(error)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in a block that takes longer."""

    def stop(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)  # where no handler runs: a wait in a library
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def location(error: BaseException) -> str:
    """Return the innermost place in this package that an exception passed, and its type: it tells failures apart."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "nnunetv2_conemos" in f.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.name} {type(error).__name__}"


def problem_with(outcome: str, message: str, made: Attempt) -> str:
    """Return what is wrong with the outcome of an input; empty where nothing is."""
    if outcome == "success":
        return f"accepted: {made.damaged}" if made.damaged else ""
    if outcome == "refused":
        named = not made.names or any(name in message for name in made.names)
        return "" if named else "names neither file nor case nor key"
    return outcome


def conemos(*words: str) -> None:
    """Run `conemos WORDS` in this process; raises what the command raised, and SystemExit for findings."""
    raised: list[BaseException] = []
    real = cli.command_module

    class Recorded:
        def __init__(self, name: str):
            self._module = real(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

        def run(self, args: Any) -> Any:
            try:
                return self._module.run(args)
            except BaseException as error:
                raised.append(error)
                raise

    with patch.object(cli, "command_module", Recorded):
        status = cli.main(list(words))
    if raised:
        raise raised[-1]
    if status:
        raise SystemExit(status)


class Share(NamedTuple):
    """The inputs from `first` to below `last` of a seed, tried in a folder; `kept`: a folder for those that fail."""

    folder: Path
    seed: int
    first: int
    last: int
    kept: Path | None


def try_inputs(share: Share, lines: Path) -> None:
    """Try inputs, and write a line for each; a line before each names it."""
    fuzzer = Fuzzer(share.folder, share.seed, share.kept)
    with lines.open("a") as file:
        for number in range(share.first, share.last):
            print(json.dumps({"begin": number}), file=file, flush=True)
            print(json.dumps(fuzzer.attempt(number)), file=file, flush=True)


def try_share(share: Share) -> list[dict[str, Any]]:
    """Try inputs in a child; where one ends the child, that is its outcome, and the next child goes on after it."""
    lines, crashed = share.folder.with_name(f"{share.folder.name}.jsonl"), []
    lines.unlink(missing_ok=True)
    while share.first < share.last:
        ended = wait(start(partial(try_inputs, share, lines)), limit=float("inf"))
        last = json.loads(lines.read_text().splitlines()[-1]) if lines.exists() else {}
        if ended.status == 0:
            break
        if "begin" not in last:
            raise RuntimeError(f"the fuzzer ended with {ended.status}: {ended.printed[-3000:]}")
        record = {"input": last["begin"], "kind": "?", "what": "?", "outcome": "crash", "where": "?"}
        crashed.append(record | {"problem": f"crash {ended.status}", "message": ended.printed[-500:]})
        share = share._replace(first=last["begin"] + 1)
    records = map(json.loads, lines.read_text().splitlines())
    for folder in (share.folder, template_of(share.folder)):
        shutil.rmtree(folder, ignore_errors=True)
    return [*crashed, *(record for record in records if "begin" not in record)]


def run(folder: Path, number: int, seed: int, workers: int, kept: Path | None = None) -> list[dict[str, Any]]:
    """Try `number` inputs of a seed in forked processes; `kept`: a folder for the files of inputs that fail."""
    folder.mkdir(parents=True, exist_ok=True)
    firsts = range(0, number, AT_ONCE)
    shares = [Share(folder / f"from_{first}", seed, first, min(first + AT_ONCE, number), kept) for first in firsts]
    records = [record for records in in_workers(try_share, shares, workers) for record in records]
    return sorted(records, key=lambda record: record["input"])
