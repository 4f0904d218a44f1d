"""`python -m attack`: run the campaign, or some of its parts, and print its figures."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("fuzz", "faults", "pairs", "truncation", "resume", "soak")


def main() -> int:
    """Run parts of the campaign; the exit status is 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m attack", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=(*PARTS, "all", "report"))
    parser.add_argument("-o", dest="folder", type=Path, default=Path("build/attack"), help="results [%(default)s]")
    parser.add_argument("--inputs", type=int, default=10_000, help="fuzzed inputs [%(default)s]")
    parser.add_argument("--faults", type=int, default=600, help="faults in all [%(default)s]")
    parser.add_argument("--cold", type=int, default=16, help="faults of commands from a shell [%(default)s]")
    parser.add_argument("--times", type=int, default=2, help="how often a pair of commands is run [%(default)s]")
    parser.add_argument("--minutes", type=float, default=10, help="of the soak [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    parser.add_argument("--workers", type=int, default=2, help="[%(default)s]")
    parser.add_argument("--only", help="commands, pairs or trainers whose name holds this text")
    parser.add_argument("--write", type=Path, metavar="FILE", help="report: put the tables into this page")
    args = parser.parse_args()
    if args.parts == ["report"]:
        from attack import summary

        text = summary.report(args.folder)
        if args.write:
            summary.write_into(args.write, text)
        print(text)
        return 0
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    return campaign(args, PARTS if "all" in args.parts else [part for part in PARTS if part in args.parts])


def campaign(args: argparse.Namespace, parts: list[str] | tuple[str, ...]) -> int:
    """Run parts one after the other, each in a temporary folder."""
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f", "MPLBACKEND": "Agg", "COLUMNS": "120"}
    from attack import summary
    from attack.commands import preload

    preload()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="attack_") as scratch:
        template = Path(scratch) / "template"
        if {"faults", "pairs", "truncation", "soak"} & set(parts):
            make_template(template)
        os.environ |= {"nnUNet_n_proc_DA": "0"}
        for part in parts:
            began = time.monotonic()
            records = RUN[part](args, template, Path(scratch))
            content = {"seconds": round(time.monotonic() - began), "seed": args.seed, "records": records}
            (args.folder / f"{part}.json").write_text(json.dumps(content, indent=1))
            lines = summary.failures(part, records)
            failed += len(lines)
            print(f"== {part}: {content['seconds']} s", summary.TABLES[part](records), *lines, sep="\n\n", flush=True)
    return int(failed > 0)


def make_template(template: Path) -> None:
    """Write the datasets and models to begin with; their messages are of no interest."""
    from attack.children import run
    from attack.starting_points import use, write_full

    ended = run(lambda: write_full(template), limit=600)
    if ended.status:
        sys.exit(f"The datasets to begin with cannot be made:\n{ended.printed}")
    use(template)


def fuzz(args: argparse.Namespace, template: Path, scratch: Path) -> Any:
    """Try fuzzed inputs; those that failed are kept in the folder of results."""
    from attack.fuzz import run

    return run(scratch / "fuzz", args.inputs, args.seed, args.workers, args.folder / "failed_inputs")


def faults(args: argparse.Namespace, template: Path, scratch: Path) -> Any:
    """Inflict faults on every command that writes."""
    from attack import cold_start
    from attack.commands import CHECKPOINTS, COMMANDS, trainer_of
    from attack.faults import attack_command, tmpfs_possible

    chosen = [c for c in (*COMMANDS.values(), *CHECKPOINTS.values()) if (args.only or "") in c.name]
    for name in CHECKPOINTS:
        trainer_of(name)
    tmpfs, folder = tmpfs_possible(scratch / "mounted"), scratch / "faults"
    folder.mkdir()
    number = -(-args.faults // len(chosen))
    jobs = [(command, template, folder, number, args.seed, tmpfs) for command in chosen]
    records = in_parallel(args, attack_command, jobs)
    return records + (cold_start.attack((template, scratch, args.cold, args.seed)) if args.cold else [])


def pairs(args: argparse.Namespace, template: Path, scratch: Path) -> Any:
    """Run all pairs of commands at once."""
    from attack.pairs import attempt
    from attack.pairs import pairs as all_pairs

    folder = scratch / "pairs"
    folder.mkdir()
    chosen = [pair for pair in all_pairs() if (args.only or "") in pair[0]]
    return in_parallel(args, attempt, [(*pair, template, folder, args.times, args.seed) for pair in chosen])


def truncation(args: argparse.Namespace, template: Path, scratch: Path) -> Any:
    """Cut every kind of file."""
    from attack.truncation import attempt_all

    parts = 8 * args.workers
    return in_parallel(args, attempt_all, [(i, parts, template, scratch) for i in range(parts)])


def resume(args: argparse.Namespace, template: Path, scratch: Path) -> Any:
    """Compare resumed with uninterrupted training."""
    from attack.resume import TRAINERS, attempt

    chosen = [name for name in TRAINERS if (args.only or "") in name]
    return in_parallel(args, attempt, [(name, scratch, args.seed) for name in chosen])


def soak(args: argparse.Namespace, template: Path, scratch: Path) -> Any:
    """Run commands in a loop, in a process of its own."""
    from attack.children import in_workers
    from attack.soak import soak as run_soak

    return next(iter(in_workers(run_soak_job, [(run_soak, template, scratch, 60 * args.minutes)], 1)))


def run_soak_job(job: tuple[Callable[..., Any], Path, Path, float]) -> Any:
    function, *words = job
    return function(*words)


def in_parallel(args: argparse.Namespace, function: Callable[[Any], list], jobs: list) -> list:
    """Return the records of all jobs, computed in forked processes."""
    from attack.children import in_workers

    return [record for records in in_workers(function, jobs, args.workers) for record in records]


RUN = {"fuzz": fuzz, "faults": faults, "pairs": pairs, "truncation": truncation, "resume": resume, "soak": soak}

if __name__ == "__main__":
    sys.exit(main())
