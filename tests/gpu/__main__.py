"""`python -m gpu`: the ten minutes for the day that a GPU is at hand.

    python -m gpu --prepare HIPPOCAMPUS               the data, beforehand; HIPPOCAMPUS is its raw folder
    python -m gpu -o FOLDER                           everything, on a GPU
    python -m gpu -o FOLDER --device cpu --tiny       the same lines with tiny sizes, a rehearsal on a CPU

nnUNet_raw and nnUNet_preprocessed say where the prepared data are. All results are below FOLDER; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gpu.hippocampus import ARMS, CONFIGURATION, TINY, longest, prepare, train, unprepared
from gpu.steps import Run, Step, conemos
from nnunetv2_conemos.doorway import VARIABLE, doorway_folder, trainer_path

HERE = Path(__file__).resolve().parent
FILM, OTHERS = ("ConditionalFiLMTrainer", "LabelSetFiLMTrainer"), ("MultiTalentTrainer", "HermesTrainer")


class Measure(NamedTuple):
    """What `conemos speed` measures."""

    arms: tuple[str, ...]
    labels: tuple[int, ...]
    options: tuple[str, ...]


MEASURES = {
    "speed": Measure((*FILM, *OTHERS), (1, 5, 20, 104), ("--no-compile", "--what", "step", "tile")),
    "compiled": Measure(FILM[:1], (5,), ("--what", "step")),
    "compiled_others": Measure((*FILM[1:], *OTHERS), (5,), ("--what", "step")),
}
LIMITS = {"tests": 240, "speed": 120, "training": 170, "compiled": 100, "compiled_others": 100}  # seconds
PARTS = tuple(LIMITS)  # the most valuable first
SHOWN = ("step_s", "step_mib", "tile_s", "tile_mib", "graphs", "graph_breaks", "recompilations")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", type=Path, metavar="HIPPOCAMPUS", help="only prepare the data, from this folder")
    parser.add_argument("--cases", type=int, default=60, help="--prepare: training cases [%(default)s]")
    parser.add_argument("--test-cases", type=int, default=20, help="--prepare: test cases [%(default)s]")
    parser.add_argument("-o", dest="folder", type=Path, default=Path("build/gpu"), help="results [%(default)s]")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="[%(default)s]")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to rehearse")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="[all, in this order]")
    parser.add_argument("--minutes", type=float, default=9.5, help="when all has to be over [%(default)s]")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, of all [%(default)s]")
    args = parser.parse_args()
    if missing := [name for name in ("nnUNet_raw", "nnUNet_preprocessed") if name not in os.environ]:
        sys.exit(f"{' and '.join(missing)}: not set; they say where the prepared data are.")
    if args.prepare:
        prepare(args.prepare, args.cases, args.test_cases, args.workers)
        return 0
    if "training" in args.parts and (missing := unprepared()):
        sys.exit(f"{missing}: no such folder. Make it with --prepare.")
    folder = args.folder.resolve()
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty: name another folder with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    return carry_out(Run(folder, 60 * args.minutes, environment(folder, args.workers)), args)


def environment(folder: Path, workers: int) -> dict[str, str]:
    """Return the environment of all commands: results below `folder`, and processes that share the cores."""
    package = HERE.parents[1]
    return os.environ | {
        VARIABLE: trainer_path(os.environ.get(VARIABLE), doorway_folder()),
        "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")]),
        "nnUNet_results": str(folder / "nnUNet_results"),
        "nnUNet_n_proc_DA": str(max(1, workers // len(ARMS) - 1)),
        "nnUNet_def_n_proc": "2",
        "nnUNet_compile": "f",  # in the few minutes of a training it would not pay
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        "PYTHONUNBUFFERED": "1",
    }


def carry_out(run: Run, args: argparse.Namespace) -> int:
    """Run the chosen parts; the exit status is 1 where a step failed."""
    slack = 10 if args.tiny else 1  # a rehearsal is on a slow machine
    limits = {part: slack * LIMITS[part] for part in args.parts}
    plan = ", ".join(f"{part} {limit} s" for part, limit in limits.items())
    run.say(f"At most {args.minutes:g} minutes on {args.device}: {plan} at most. Results: {run.folder}")
    epochs, configuration, seconds = (1, TINY, 0.0) if args.tiny else (5, CONFIGURATION, 0.0)
    for part, limit in limits.items():
        if part == "tests":
            run.do(Step("the tests that need a GPU", limit, {"tests": tests(args.workers)}))
            passed = run.tail("tests", 10_000).count(" PASSED ")  # pytest's last line lacks it where the time was over
            run.say(f"   {passed} passed; {run.tail('tests', 1)}")
        elif part == "training":
            seconds = train(run, epochs, args.device, configuration, limit)
        else:
            measure(run, part, limit, args)
    if seconds and not args.tiny and (more := longest(epochs, seconds, run.left)):
        train(run, more, args.device, configuration, run.left)
    run.say(f"\n{run.left:.0f} s left. " + ("\n".join(["Failed:", *run.failed]) if run.failed else "No step failed."))
    return int(bool(run.failed))


def tests(workers: int) -> list[str]:
    """Return the words of the test run; each process compiles alone, as nnU-Net's do, since many do so at once."""
    parallel = ["-n", str(min(workers, 16))] if workers > 2 else []
    options = ["-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider", *parallel]
    compiling_alone = ["env", "TORCHINDUCTOR_COMPILE_THREADS=1", "JAXTYPING_DISABLE=1"]  # its checks break graphs
    return [
        *compiling_alone,
        sys.executable,
        "-m",
        "pytest",
        *options,
        "--rootdir",
        str(HERE.parents[1]),
        str(HERE / "test_gpu.py"),
    ]


def measure(run: Run, part: str, limit: float, args: argparse.Namespace) -> None:
    """Measure steps and tiles at nnU-Net's default plans in mixed precision, small ones on a CPU."""
    what = MEASURES[part]
    labels, options = (what.labels[:2], [*what.options, "--rounds", "1"]) if args.tiny else (what.labels, what.options)
    words = ("speed", "-o", run.folder / part, "-device", args.device, "--arms", *what.arms, *options)
    title = f"{part}: {', '.join(what.arms)} beside stock nnU-Net, K = {' '.join(map(str, labels))}"
    run.do(Step(title, limit, {part: conemos(*words, "--labels-counts", *labels)}))
    file = run.folder / part / "speed.csv"
    run.say(speed_table(file) if file.is_file() else "   nothing measured")


def speed_table(file: Path) -> str:
    """Return what was measured, each value with its multiple of stock nnU-Net's in the same run."""
    table = pd.read_csv(file)
    shown = [name for name in SHOWN if table[name].notna().any()]
    columns = [column for name in shown for column in (name, f"{name}_ratio") if column in table]
    return table[["labels", "arm", *columns, "note"]].to_string(index=False, float_format="%.4g", na_rep="-")


if __name__ == "__main__":
    sys.exit(main())
