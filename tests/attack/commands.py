"""The commands that write, on the datasets of `starting_points`: their words, what they need and what they make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nnunetv2.paths import nnUNet_preprocessed
from phantoms import PHANTOM

from attack.starting_points import ABDOMEN, BEST, KIDNEY, TAGGED, use
from nnunetv2_conemos import cli, methods

HOW = ("-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0")
MODEL = f"nnUNet_results/{PHANTOM}/ConditionalFiLMTrainer__nnUNetPlans__tiny"
CAMS = f"nnUNet_results/{TAGGED}/CMERTrainer__nnUNetPlans__whole"
OUT = "Dataset780_Out"
RAW_OUT = f"nnUNet_raw/{OUT}"


class Writing(NamedTuple):
    """A command that writes. `needs`: folders and files that it reads; `parts`: what it makes, each whole or not.

    Words in braces are paths below the base folder. `old`: words of a command that makes what is replaced.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    parts: tuple[str, ...]
    old: tuple[str, ...] = ()


def raw(*names: str) -> tuple[str, ...]:
    return tuple(f"nnUNet_raw/{name}" for name in names)


IMPORT = ("import", f"{{nnUNet_raw/{KIDNEY}}}", "-o", OUT, "-np", "1")
CONVERT = ("convert", "702", "--as", "masks", "-o", "{out/masks}", "-np", "1")
MERGE = ("merge", "701", "702", "-o", OUT, "-np", "1")
HIDE = ("hide", "702", "-o", OUT, "--per-case", "1", "-np", "1")
SPLIT = ("split", "702", "-o", OUT, "--setting", "ssl", "--labelled", "3", "--folds", "3", "-np", "1")
COMPLETE = ("complete", "-m", f"{{{MODEL}}}", "-d", "901", "-o", OUT, *HOW)
CAMS_WORDS = ("cams", f"{{{CAMS}}}", "-d", "902", "-o", OUT, *HOW)
DECLARE = ("declare", "702", "--annotated", "{tables/kidney.csv}")
EVALUATE = (
    "evaluate",
    f"{{nnUNet_raw/{KIDNEY}/labelsTr}}",
    "{predictions/one}",
    "-d",
    "702",
    "-o",
    "{out}",
    "-np",
    "1",
)
COMPARE = ("compare", "one={one}", "two={two}", "-o", "{out/compared.csv}", "--figure", "{out/compared.png}")
BEST_WORDS = ("best", BEST, "-np", "1")
EXPORT = ("export", "-m", f"{{{MODEL}}}", "--label", "liver", "-o", "{out/model}", "--zip", "{out/model.zip}")
ADAPT = (
    "adapt", f"{{{MODEL}/fold_0/checkpoint_final.pth}}", "-d", "901", "-o", "{out/start.pth}", "-c", "tiny",
)  # fmt: skip
SLICES = ("slices", "901", "--name", "whole")

TWO = raw(ABDOMEN, KIDNEY)
KIDNEYS = (*raw(KIDNEY), f"nnUNet_preprocessed/{KIDNEY}")
SCORED = (*raw(KIDNEY), "predictions")
PHANTOMS = (*raw(PHANTOM), f"nnUNet_preprocessed/{PHANTOM}", f"nnUNet_results/{PHANTOM}")
TAGGEDS = (*raw(TAGGED), f"nnUNet_preprocessed/{TAGGED}", f"nnUNet_results/{TAGGED}")
BESTS = (*raw(BEST), f"nnUNet_preprocessed/{BEST}", f"nnUNet_results/{BEST}")
DECLARED = tuple(f"{folder}/{KIDNEY}/dataset.json" for folder in ("nnUNet_raw", "nnUNet_preprocessed"))
SCORES = ("out/evaluation.csv", "out/evaluation.json")
EXPORTED, COMPARED = ("out/model", "out/model.zip"), ("out/compared.csv", "out/compared.png")

COMMANDS = {
    command.name: command
    for command in (
        Writing("import", IMPORT, raw(KIDNEY), (RAW_OUT,)),
        Writing("import --overwrite", (*IMPORT, "--overwrite"), TWO, (RAW_OUT,), HIDE),
        Writing("convert", CONVERT, raw(KIDNEY), ("out/masks",)),
        Writing("merge", MERGE, TWO, (RAW_OUT,)),
        Writing("merge --overwrite", (*MERGE, "--overwrite"), TWO, (RAW_OUT,), HIDE),
        Writing("merge --images copy", (*MERGE, "--images", "copy"), TWO, (RAW_OUT,)),
        Writing("hide", HIDE, raw(KIDNEY), (RAW_OUT,)),
        Writing("hide --overwrite", (*HIDE, "--overwrite"), TWO, (RAW_OUT,), MERGE),
        Writing("split", SPLIT, raw(KIDNEY), (RAW_OUT,)),
        Writing("split --overwrite", (*SPLIT, "--overwrite"), TWO, (RAW_OUT,), HIDE),
        Writing("declare", DECLARE, (*KIDNEYS, "tables"), DECLARED),
        Writing("evaluate", EVALUATE, SCORED, SCORES),
        Writing("evaluate --overwrite", (*EVALUATE, "--overwrite", "--tolerance", "1"), SCORED, SCORES, EVALUATE),
        Writing("compare", COMPARE, ("one", "two"), COMPARED),
        Writing("best", BEST_WORDS, BESTS, (f"nnUNet_results/{BEST}/conemos_best.json",)),
        Writing("complete", COMPLETE, PHANTOMS, (RAW_OUT,)),
        Writing("cams", CAMS_WORDS, TAGGEDS, (RAW_OUT,)),
        Writing("export", EXPORT, PHANTOMS, EXPORTED),
        Writing("adapt", ADAPT, PHANTOMS, ("out/start.pth",)),
        Writing("slices", SLICES, PHANTOMS, (f"nnUNet_preprocessed/{PHANTOM}/nnUNetPlans.json",)),
    )
}
CHECKPOINTS = {
    name: Writing(f"checkpoint of {name}", (), (f"nnUNet_preprocessed/{PHANTOM}",), ("out/checkpoint_latest.pth",))
    for name in ("ConditionalFiLMTrainer", "HermesTrainer", "UniMOSTrainer")
}


def lay_out(command: Writing, template: Path, base: Path) -> None:
    """Make a base folder that holds what a command needs, and nothing else."""
    shutil.rmtree(base, ignore_errors=True)
    use(base)
    for name in command.needs:
        if (template / name).is_dir():
            shutil.copytree(template / name, base / name, dirs_exist_ok=True)
    (base / "out").mkdir()


def filled_in(words: tuple[str, ...], base: Path) -> list[str]:
    """Return words with the paths in braces below a base folder."""
    return [word.replace("{", f"{base}/", 1).replace("}", "") if "{" in word else word for word in words]


def work_of(command: Writing, base: Path) -> Callable[[], int | None]:
    """Return what a child does to run a command: by `conemos`, or by a trainer that saves a checkpoint."""
    if not command.words:
        return lambda: save_checkpoint(command.name.split()[-1], base / command.parts[0])
    words = filled_in(command.words, base)
    return lambda: cli.main(words)


def new_trainer(name: str) -> Any:
    """Return an initialised trainer on the phantom."""
    folder = Path(nnUNet_preprocessed) / PHANTOM
    plans = json.loads((folder / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    content = json.loads((folder / "dataset.json").read_text())
    torch.manual_seed(0)
    trainer = getattr(methods, name)(plans, "tiny", 0, content, torch.device("cpu"))
    trainer.initialize()
    return trainer


trainer_of = cache(new_trainer)  # made in the process that forks


def save_checkpoint(name: str, file: Path) -> int:
    """Save a checkpoint, as `nnUNetv2_train` does after an epoch, with a SIGTERM that ends the process at once."""
    trainer_of(name).save_checkpoint(str(file))
    return 0


def preload() -> None:
    """Import what the commands import when they run, so that no child has to."""
    import blosc2
    import monai.metrics  # noqa: F401
    import skimage.io  # noqa: F401
    import tifffile  # noqa: F401

    for name in cli.COMMANDS:
        cli.command_module(name)
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)  # a child that is forked has no other thread, and would wait for it
