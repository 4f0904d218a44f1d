"""Every kind of file that the commands read, cut at ten lengths: refused, and the file is named.

Text without an end of its own (CSV, YAML) may still be whole lines after a cut, and JSON that lost its last line break
is the same JSON; such cuts are told apart as `undetectable`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from phantoms import PHANTOM

from attack.children import run
from attack.commands import HOW, new_trainer
from attack.folders import Restored
from attack.fuzz import RESULTS, carry_out
from attack.inputs import Attempt, check
from attack.inputs import run as conemos
from attack.starting_points import KIDNEY, use

SHARES = (0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.999, 1.0)  # of the bytes; at least one byte is lacking


class Reading(NamedTuple):
    """A file, what reads it, and the names by one of which a refusal must call it."""

    file: str
    reader: str
    call: Callable[[], Any]
    names: tuple[str, ...]


def readings(base: Path) -> Iterator[Reading]:
    """Yield every kind of file with everything that reads it."""
    for name, ending in (
        (KIDNEY, ".nii.gz"), ("Dataset706_Nii", ".nii"), ("Dataset704_Nrrd", ".nrrd"), ("Dataset705_Mha", ".mha"),
        ("Dataset707_Png", ".png"), ("Dataset708_Tif", ".tif"),
    ):  # fmt: skip
        yield from _volumes(base, name, ending)
    out, tables = ("-o", "Dataset780_Out", "-np", "1"), base / "tables"
    raw = f"nnUNet_raw/{KIDNEY}/dataset.json"
    yield Reading(raw, "check", check("702"), ("dataset.json",))
    yield Reading(raw, "merge", conemos("merge", "702", "701", *out), ("dataset.json",))
    for name in ("kidney.json", "kidney.csv"):
        yield Reading(f"tables/{name}", "declare", conemos("declare", "702", "--annotated", tables / name), (name,))
    yield Reading(
        "tables/groups.json", "hide", conemos("hide", "702", "--groups", tables / "groups.json", *out), ("groups.json",)
    )
    recipe = conemos("merge", "--recipe", tables / "merge.yaml", *out)
    yield Reading("tables/merge.yaml", "merge", recipe, ("merge.yaml",))
    pair = ("compare", base / "one", base / "two")
    yield Reading("two/evaluation.csv", "compare", conemos(*pair), ("two/evaluation.csv",))
    yield from _models(base)
    yield from _preprocessed(base)


def _volumes(base: Path, name: str, ending: str) -> Iterator[Reading]:
    folder = base / "nnUNet_raw" / name
    truth, made = folder / "labelsTr", ("-o", "Dataset780_Out", "-np", "1")
    for part, channel in (("imagesTr", "_0000"), ("labelsTr", "")):
        file = sorted((folder / part).glob(f"*{ending}"))[1]
        relative, case = str(file.relative_to(base)), file.name.removesuffix(f"{channel}{ending}")
        yield Reading(relative, "check", check(name), (case,))
        yield Reading(relative, "merge", conemos("merge", name, *made), (case,))
        if ending != ".nii.gz" and part == "imagesTr":
            continue  # they read alike
        yield Reading(relative, "hide", conemos("hide", name, "--fraction", "0.5", *made), (case,))
        yield Reading(
            relative,
            "split",
            conemos("split", name, "--setting", "ssl", "--labelled", "3", "--folds", "3", *made),
            (case,),
        )
        if part == "labelsTr":
            words = ("evaluate", truth, truth, "-d", name, "-o", base / "out", "-np", "1")
            yield Reading(relative, "evaluate", conemos(*words), (case,))


def _models(base: Path) -> Iterator[Reading]:
    model = f"nnUNet_results/{PHANTOM}/ConditionalFiLMTrainer__nnUNetPlans__tiny"
    export = conemos("export", "-m", base / model, "--label", "liver", "-o", base / "out" / "model")
    for name in ("fold_0/checkpoint_final.pth", "plans.json", "dataset.json"):
        yield Reading(f"{model}/{name}", "export", export, (Path(name).name,))
    checkpoint = f"{model}/fold_0/checkpoint_final.pth"
    adapt = ("adapt", base / checkpoint, "-d", "901", "-o", base / "out" / "start.pth", "-c", "tiny")
    yield Reading(checkpoint, "adapt", conemos(*adapt), ("checkpoint_final.pth",))
    complete = ("complete", "-m", base / model, "-d", "901", "-o", "Dataset780_Out", *HOW)
    yield Reading(checkpoint, "complete", conemos(*complete), ("checkpoint_final.pth",))

    def resume() -> None:
        new_trainer("ConditionalFiLMTrainer").load_checkpoint(str(base / checkpoint))

    yield Reading(checkpoint, "training --c", resume, ("checkpoint_final.pth",))
    plans = f"nnUNet_preprocessed/{PHANTOM}/nnUNetPlans.json"
    yield Reading(plans, "slices", conemos("slices", "901", "--name", "other"), ("nnUNetPlans.json",))


def _preprocessed(base: Path) -> Iterator[Reading]:
    """Yield the files of a preprocessed case, as training reads them."""
    folder = base / "nnUNet_preprocessed" / PHANTOM / "nnUNetPlans_3d_fullres"

    def load() -> None:
        trainer = new_trainer("ConditionalFiLMTrainer")
        training, validation = trainer.get_tr_and_val_datasets()
        for dataset in (training, validation):
            for case in dataset.identifiers:
                image, label, *_ = dataset.load_case(case)
                image[:], label[:]

    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        file = folder / f"{sorted(infer_dataset_class(str(folder)).get_identifiers(str(folder)))[0]}{ending}"
        yield Reading(str(file.relative_to(base)), "training", load, (file.name, file.name.partition(".")[0]))
    splits = f"nnUNet_preprocessed/{PHANTOM}/splits_final.json"
    yield Reading(splits, "training", load, ("splits_final.json",))


def attempt(reading: Reading, restored: Restored) -> Iterator[dict[str, Any]]:
    """Cut one file at ten lengths; yield what happened each time."""
    file, whole = restored.base / reading.file, (restored.template / reading.file).read_bytes()
    for share in SHARES:
        cut = min(round(share * len(whole)), len(whole) - 1)
        file.write_bytes(whole[:cut])
        ended = run(lambda: print(json.dumps(carry_out(Attempt("", reading.call)))))
        outcome, message, where = json.loads(ended.printed.splitlines()[-1]) if ended.status == 0 else ("hung", "", "")
        problem = ""
        if outcome == "success":
            problem = "" if undetectable(file, whole, cut) else "accepted"
            outcome = outcome if problem else "undetectable"
        elif outcome != "refused":
            problem = outcome
        elif not undetectable(file, whole, cut) and not any(name in message for name in reading.names):
            problem = "does not name the file"
        restored.restore()
        record = {"file": reading.file, "reader": reading.reader, "bytes": cut, "of": len(whole), "outcome": outcome}
        yield record | {"problem": problem} | ({"message": message[-300:], "where": where} if problem else {})


def undetectable(file: Path, whole: bytes, cut: int) -> bool:
    """Return whether a cut leaves a file that is valid by itself: the same JSON, or fewer lines of CSV or YAML."""
    if file.suffix == ".json":
        return whole[cut:].strip() == b""
    if file.suffix == ".csv":
        return True
    if file.suffix == ".yaml":
        with suppress(yaml.YAMLError):
            return isinstance(yaml.safe_load(whole[:cut]), dict)
        return False
    return file.suffix == ".png" and len(whole) - cut <= 16  # checksum and end mark of a PNG


def attempt_all(job: tuple[int, int, Path, Path]) -> list[dict[str, Any]]:
    """Cut every `step`-th file, beginning at `first`."""
    first, step, template, folder = job
    restored = Restored(folder / f"truncation_{first}", template, RESULTS)
    use(restored.base)
    done = [r for reading in list(readings(restored.base))[first::step] for r in attempt(reading, restored)]
    shutil.rmtree(restored.base.parent)
    return done
