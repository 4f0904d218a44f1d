"""Two commands at once with one target: one wins whole, the other refuses or follows.

Both start at once and are slowed down at every file operation, so that they overlap. In the end each part of the target
is what one of them makes, all parts are of the same one, and nothing else is left.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

from phantoms import PHANTOM

from attack.children import run, start, wait
from attack.commands import (
    ADAPT,
    BEST_WORDS,
    BESTS,
    CAMS_WORDS,
    COMPARE,
    COMPARED,
    COMPLETE,
    DECLARE,
    DECLARED,
    EVALUATE,
    EXPORT,
    EXPORTED,
    HIDE,
    KIDNEYS,
    MERGE,
    OUT,
    PHANTOMS,
    RAW_OUT,
    SCORED,
    SCORES,
    SLICES,
    SPLIT,
    TAGGEDS,
    TWO,
    Writing,
    filled_in,
    lay_out,
)  # fmt: skip
from attack.digests import below, tree
from attack.faults import again
from attack.starting_points import BEST
from nnunetv2_conemos import cli

ALL = tuple(dict.fromkeys((*TWO, *PHANTOMS, *TAGGEDS)))
FOLDERS = {
    "merge": MERGE,
    "merge of one": ("merge", "702", "-o", OUT, "-np", "1"),
    "hide": HIDE,
    "split": SPLIT,
    "complete": COMPLETE,
    "cams": CAMS_WORDS,
}
DECLARE_ALL = ("declare", "702", "--annotated", "{tables/kidney.json}", "--overwrite")
SAME_TARGET: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    ("declare", (*DECLARE, "--overwrite"), DECLARE_ALL, (*KIDNEYS, "tables"), DECLARED),
    ("evaluate", EVALUATE, (*EVALUATE, "--tolerance", "1"), SCORED, SCORES),
    (
        "evaluate --overwrite", (*EVALUATE, "--overwrite"), (*EVALUATE, "--tolerance", "1", "--overwrite"), SCORED,
        SCORES,
    ),
    ("compare", COMPARE, (*COMPARE, "--metric", "nsd"), ("one", "two"), COMPARED),
    ("best", BEST_WORDS, (*BEST_WORDS, "-f", "0"), BESTS, (f"nnUNet_results/{BEST}/conemos_best.json",)),
    ("export", EXPORT, (*EXPORT[:3], "--label", "spleen", *EXPORT[5:]), PHANTOMS, EXPORTED),
    ("adapt", ADAPT, (*ADAPT, "-tr", "LabelSetFiLMTrainer"), PHANTOMS, ("out/start.pth",)),
    (
        "slices", SLICES, (*SLICES, "--batch", "4", "--overwrite"), PHANTOMS,
        (f"nnUNet_preprocessed/{PHANTOM}/nnUNetPlans.json",),
    ),
)  # fmt: skip


def pairs() -> Iterator[tuple[str, Writing, Writing]]:
    """Yield all pairs of commands that can have one target, with and without --overwrite."""
    for first, second in combinations_with_replacement(FOLDERS, 2):
        for more in ((), ("--overwrite",)):
            two = [Writing(name, (*FOLDERS[name], *more), ALL, (RAW_OUT,)) for name in (first, second)]
            yield (f"{first} and {second} {' '.join(more)}".strip(), *two)
    for name, one, other, needs, parts in SAME_TARGET:
        yield f"two of {name}", Writing(name, one, needs, parts), Writing(name, other, needs, parts)


def slowed(work: Callable[[], int | None], at: float, delay: float) -> int | None:
    """Run a command from a given moment on, with a delay at each operation on a file."""
    process = os.getpid()

    def look(event: str, _: tuple[Any, ...]) -> None:
        if (
            event.startswith("os.")
            and event not in ("os.listdir", "os.scandir", "os.putenv")
            and os.getpid() == process
        ):
            time.sleep(delay)

    time.sleep(max(0.0, at - time.monotonic()))
    sys.addaudithook(look)
    return work()


def attempt(job: tuple[str, Writing, Writing, Path, Path, int, int]) -> list[dict[str, Any]]:
    """Run a pair several times at once; return what happened."""
    name, first, second, template, folder, times, seed = job
    rng = random.Random(f"{seed} {name}")
    base = folder / f"pair_{os.getpid()}"
    lay_out(first, template, base)
    beginning = base.with_name(f"{base.name}_start")
    shutil.rmtree(beginning, ignore_errors=True)
    shutil.copytree(base, beginning, symlinks=True)
    alone = []
    for command in (first, second):
        again(beginning, base)
        ended = run(lambda command=command: cli.main(filled_in(command.words, base)))
        if ended.status:
            return [{"pair": name, "statuses": [ended.status], "problems": {"alone": ended.printed[-500:]}}]
        alone.append((tree(base), set(tree(base, hidden=True))))
    records = []
    for _ in range(times):
        again(beginning, base)
        moment, delays = (
            time.monotonic() + 0.05,
            (rng.choice((0.0, 0.05, 0.2)), rng.uniform(0, 0.02), rng.uniform(0, 0.02)),
        )
        children = []
        for command, late, delay in ((first, 0.0, delays[1]), (second, delays[0], delays[2])):
            words = filled_in(command.words, base)
            children.append(start(partial(slowed, partial(cli.main, words), moment + late, delay)))
        ended = [wait(child, 120) for child in children]
        statuses = [end.status for end in ended]
        now, hidden = tree(base), set(tree(base, hidden=True))
        problems = judge(first, now, [states for states, _ in alone], statuses)
        left = hidden - alone[0][1] - alone[1][1]
        if left:
            problems["left"] = ", ".join(sorted(left)[:5])
        if any(end.left for end in ended):
            problems["process left"] = str([end.left for end in ended])
        if any("Traceback" in end.printed for end in ended):
            problems["traceback"] = "; ".join(
                end.printed.strip().splitlines()[-1][:200] for end in ended if end.printed.strip()
            )
        record = {"pair": name, "statuses": statuses, "problems": problems}
        records.append(record | ({"printed": [end.printed[-300:] for end in ended]} if problems else {}))
    for path in (base, beginning):
        shutil.rmtree(path)
    (folder / f"{name.replace(' ', '_')}.json").write_text(json.dumps(records, indent=1))
    return records


def judge(
    command: Writing, now: dict[str, str], alone: list[dict[str, str]], statuses: list[int | None]
) -> dict[str, str]:
    """Return what is wrong after two commands ran at once."""
    problems = {}
    if None in statuses or not set(statuses) <= {0, 2} or 0 not in statuses:
        problems["statuses"] = str(statuses)
    winners = [{i for i, after in enumerate(alone) if below(now, part) == below(after, part)} for part in command.parts]
    if not all(winners):
        torn = [part for part, winner in zip(command.parts, winners, strict=True) if not winner]
        problems["torn"] = ", ".join(torn)
    elif not set.intersection(*winners):
        problems["mixed"] = f"parts of both: {winners}"
    own = {name for part in command.parts for name in below(now | alone[0] | alone[1], part)}
    others = [name for name in {**now, **alone[0]} if name not in own and now.get(name) != alone[0].get(name)]
    if others:
        problems["outside changed"] = ", ".join(others[:5])
    return problems
