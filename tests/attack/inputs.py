"""The kinds of fuzzed inputs: each writes a mutated input below the base folder, and says what reads it."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from attack import mutate
from attack.starting_points import ABDOMEN, KIDNEY, OTHER_ENDINGS, PICTURES, REGIONS
from attack.volumes import mutate_volume

OUT = "Dataset780_Out"
TRAINED_ON = [f"c{i}" for i in range(6)]
KEYS = (
    "labels", "sources", "tags", "channel_names", "file_ending", "numTraining", "regions_class_order", "dataset",
    "overwrite_image_reader_writer", "extra",
)  # fmt: skip


class Attempt(NamedTuple):
    """An input, and what reads it: `call` returns findings, raises a refusal, or succeeds.

    `names`: one of these must be in the message of a refusal. `damaged`: why a success would be wrong. `wrote`: the
    files that were mutated, and `rewritten` those that a success changes. `writes_folder`: it makes `OUT`;
    `names_result`: the mutated words themselves say where results go.
    """

    what: str
    call: Callable[[], Any]
    names: tuple[str, ...] = ()
    damaged: str = ""
    wrote: tuple[str, ...] = ()
    rewritten: tuple[str, ...] = ()
    writes_folder: bool = False
    names_result: bool = False


class Kind(NamedTuple):
    """A kind of input: how many of all inputs are of it, relative to the others, and what makes one."""

    share: int
    make: Callable[[random.Random, Path], Attempt]


def run(*words: object) -> Callable[[], Any]:
    """Return a call of `conemos` with these words."""
    from attack.fuzz import conemos

    return lambda: conemos(*map(str, words))


def check(dataset: str) -> Callable[[], Any]:
    """Return a call of `check` that returns its errors as text."""

    def call() -> str:
        from nnunetv2_conemos.datasets.check import check as check_dataset

        return "\n".join(f"{e.where} {e.what} {e.remedy}" for e in check_dataset(dataset).errors)

    return call


def changed_json(rng: random.Random, data: bytes, keys: Sequence[str] = ()) -> tuple[bytes, str]:
    """Return a JSON file changed by structure, up to three times, or by its bytes."""
    if rng.random() < 0.25:
        return mutate.text(rng, data)
    content, done = json.loads(data), []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        below = rng.choice(keys) if keys and isinstance(content, dict) and rng.random() < 0.8 else None
        content, what = mutate.structure(rng, content, below)
        done.append(what)
    return mutate.json_text(content), ", ".join(done)


def dataset_json(rng: random.Random, base: Path) -> Attempt:
    """dataset.json of a raw dataset, with labels, regions, sources and tags."""
    name = rng.choice((ABDOMEN, ABDOMEN, KIDNEY, REGIONS))
    file = base / "nnUNet_raw" / name / "dataset.json"
    data, what = changed_json(rng, file.read_bytes(), KEYS)
    what += mutate.put(rng, file, data)
    number, np = name[7:10], ("-np", "1")
    first, *rest = rng.choices(
        (
            ("check",), ("merge", number, "702" if name != KIDNEY else "701"), ("hide", number, "--per-case", "1"),
            ("split", number, "--setting", "ssl", "--labelled", "2", "--folds", "2"),
            ("declare", number, "--annotated", base / "tables" / "kidney.json", "--missing", "all", "--overwrite"),
            ("evaluate", file.parent / "labelsTr", file.parent / "labelsTr", "-d", number, "-o", base / "out", *np),
        ),
        (60, 15, 8, 5, 7, 5),
    )[0]  # fmt: skip
    names = ("dataset.json", name, name[11:], "case '", "source '", "`", "label", "labelsTr", "imagesTr", *KEYS)
    wrote = str(file.relative_to(base))
    if first == "check":
        return Attempt(
            f"{what}; check", check(number), names, refused_by_nnunet(data, 7 if name == ABDOMEN else 5), (wrote,)
        )
    more = ("-o", OUT, *np) if first in ("merge", "hide", "split") else ()
    writes = first in ("merge", "hide", "split")
    return Attempt(f"{what}; {first}", run(first, *rest, *more), names, "", (wrote,), (), writes)


def refused_by_nnunet(data: bytes, cases: int) -> str:
    """Return why nnU-Net itself refuses a dataset.json of so many cases; empty where it does not."""
    with suppress(ValueError, KeyError, AttributeError, TypeError, RecursionError):
        content = json.loads(data)
        labels = content["labels"]
        if not isinstance(labels, dict):
            return ""
        try:
            manager = LabelManager(labels, content.get("regions_class_order"))
            consecutive = list(manager.all_labels)
        except Exception as error:
            return f"nnU-Net's LabelManager: {type(error).__name__} {str(error)[:60]}"
        if "background" not in labels:
            return "nnU-Net wants `background`"
        if consecutive != list(range(len(consecutive))):
            return f"nnU-Net wants consecutive labels, found {consecutive[:10]}"
        if isinstance(content["numTraining"], int) and content["numTraining"] != cases:
            return "numTraining is not the number of cases"
    return ""


def table(rng: random.Random, base: Path) -> Attempt:
    """A table case -> labels, as JSON or CSV."""
    file = base / "tables" / rng.choice(("kidney.json", "kidney.csv", "kidney.csv"))
    data = file.read_bytes()
    if file.suffix == ".json":
        data, what = changed_json(rng, data)
    else:
        data, what = (mutate.fields if rng.random() < 0.7 else mutate.text)(rng, data)
    what += mutate.put(rng, file, data)
    missing = rng.choice(((), ("--missing", "all"), ("--missing", "unlabelled")))
    first, *words = rng.choices(
        (
            ("declare", KIDNEY, "--annotated", file, *missing),
            ("merge", "702", "701", "-o", OUT, "-np", "1", "--annotated", f"Dataset702_Kidney:{file}"),
            (
                "evaluate", base / "nnUNet_raw" / KIDNEY / "labelsTr", base / "predictions" / "one",
                "--annotated", file, "-o", base / "out", "-np", "1",
            ),
        ),
        (85, 5, 10),
    )[0]  # fmt: skip
    rewritten = tuple(f"{folder}/{KIDNEY}/dataset.json" for folder in ("nnUNet_raw", "nnUNet_preprocessed"))
    wrote = (str(file.relative_to(base)),)
    if first != "declare":
        rewritten = ()
    names = (file.name, "case '", "--missing", "label", "of the table")
    return Attempt(f"{what}; {first} {file.name}", run(first, *words), names, "", wrote, rewritten, first == "merge")


def groups(rng: random.Random, base: Path) -> Attempt:
    """The groups of `hide`."""
    file = base / "tables" / "groups.json"
    data, what = changed_json(rng, file.read_bytes())
    what += mutate.put(rng, file, data)
    call = run("hide", "702", "-o", OUT, "--groups", file, "-np", "1")
    return Attempt(what, call, (file.name, "group"), "", (str(file.relative_to(base)),), (), True)


def changed_yaml(rng: random.Random, file: Path) -> str:
    """Change a recipe by structure or by its bytes."""
    if rng.random() < 0.35:
        data, what = mutate.text(rng, file.read_bytes())
    else:
        content, what = mutate.structure(rng, yaml.safe_load(file.read_text()))
        if rng.random() < 0.3:
            content, more = mutate.structure(rng, content)
            what += f", {more}"
        try:
            data = mutate.yaml_text(content)
        except yaml.YAMLError:
            data = mutate.json_text(content)  # YAML too
    return what + mutate.put(rng, file, data)


def merge_recipe(rng: random.Random, base: Path) -> Attempt:
    """A recipe of `merge`."""
    file = base / "tables" / "merge.yaml"
    what = changed_yaml(rng, file)
    call = run("merge", "--recipe", file, "-o", OUT, "-np", "1")
    names = (file.name, "dataset", "label", "channel", "region", "rename", "drop", "keep", "case")
    return Attempt(what, call, names, "", (str(file.relative_to(base)),), (), True)


def benchmark_recipe(rng: random.Random, base: Path) -> Attempt:
    """A recipe of `benchmark`, as far as it is read."""
    from nnunetv2_conemos.benchmark.config_file import read_recipe, recipe_text

    file = base / "tables" / "benchmark.yaml"
    what = changed_yaml(rng, file)
    wrote = (str(file.relative_to(base)),)
    return Attempt(what, lambda: recipe_text(read_recipe(file, {})) and None, (file.name, "arm", "recipe"), "", wrote)


def write_trained_on(base: Path) -> None:
    """Write a tiny preprocessed dataset."""
    from worlds import shapes, write_world

    drawn, sources = np.random.default_rng(0), {"S": {"cases": ["c*"], "annotated": ["square", "disc"]}}
    labels = {"background": 0, "square": 1, "disc": 2}
    write_world(base, {case: shapes(drawn, 16) for case in TRAINED_ON}, labels, sources)


def splits(rng: random.Random, base: Path) -> Attempt:
    """splits_final.json of a preprocessed dataset, as training reads it."""
    from worlds import NAME, make_trainer

    from nnunetv2_conemos.methods import ConditionalFiLMTrainer

    folder = base / "nnUNet_preprocessed" / NAME
    cases = TRAINED_ON
    folds = [{"train": [c for c in cases if c not in held], "val": held} for held in (cases[:2], cases[2:4], cases[4:])]
    data, what = changed_json(rng, mutate.json_text(folds))
    file = folder / "splits_final.json"
    what += mutate.put(rng, file, data)

    def call() -> None:
        make_trainer(base, ConditionalFiLMTrainer).do_split()

    wrote = (str(file.relative_to(base)),)
    damaged = wrong_fold(data, cases) if file.is_file() else ""
    return Attempt(what, call, (file.name, "fold"), damaged, wrote)


def wrong_fold(data: bytes, cases: list[str]) -> str:
    """Return why the first fold cannot be trained on."""
    with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        train, val = (list(json.loads(data)[0][part]) for part in ("train", "val"))
        for part in (train, val):
            if any(case not in cases for case in part):
                return "an unknown case"
            if len(set(part)) < len(part):
                return "a case twice"
        if set(train) & set(val):
            return "a case in train and val"
    return ""


def volume(rng: random.Random, base: Path) -> Attempt:
    """An image or label map of a raw dataset, or a prediction."""
    names = (KIDNEY, KIDNEY, *OTHER_ENDINGS.values(), *PICTURES.values())
    name = rng.choice(names)
    folder = base / "nnUNet_raw" / name
    part = rng.choice(("imagesTr", "labelsTr"))
    files = sorted((folder / part).iterdir())
    file = rng.choice([file for file in files if file.suffix != ".json"])
    what, damaged = mutate_volume(rng, file, part == "labelsTr")
    case = file.name.partition(".")[0].removesuffix("_0000")
    wrote = (str(file.relative_to(base)),)
    command = rng.choice(("check", "check", "check", "merge", "hide", "evaluate"))
    call, writes = {
        "check": (check(name[7:10]), False),
        "merge": (run("merge", name, "-o", OUT, "-np", "1"), True),
        "hide": (run("hide", name, "-o", OUT, "--fraction", "0.5", "-np", "1"), True),
        "evaluate": (
            run("evaluate", folder / "labelsTr", folder / "labelsTr", "-d", name, "-o", base / "out", "-np", "1"),
            False,
        ),
    }[command]
    if command == "evaluate" and part == "imagesTr":
        damaged = ""
    return Attempt(f"{what} in {part}/{file.name}; {command}", call, (case,), damaged, wrote, (), writes)


def scores(rng: random.Random, base: Path) -> Attempt:
    """The evaluation.csv that `compare` reads."""
    columns = ("case", "source", "label", "status", "dice", "nsd", "hd95_mm")
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(columns)
    for i in range(4):
        for label in ("kidney", "spleen"):
            rows.writerow((f"k{i}", "all", label, "found", 0.5 + 0.1 * i, 0.5, 2.0))
    for name in ("one", "two"):
        (base / "out" / name).mkdir(exist_ok=True)
        (base / "out" / name / "evaluation.csv").write_text(written.getvalue())
    file = base / "out" / "two" / "evaluation.csv"
    data, what = (mutate.fields if rng.random() < 0.6 else mutate.text)(rng, file.read_bytes())
    what += mutate.put(rng, file, data)
    call = run("compare", base / "out" / "one", base / "out" / "two", "-o", base / "out" / "table.csv")
    return Attempt(what, call, ("evaluation.csv", "case", "pair"))


def options(rng: random.Random, base: Path) -> Attempt:
    """The words of a command line."""
    words = [str(word) for word in rng.choice(command_lines(base))]
    for _ in range(rng.choice((1, 1, 2))):
        change_words(rng, words)
    shown = " ".join(mutate.shown(word) if not word.isascii() or len(word) > 60 else word for word in words)
    shown = shown.replace(str(base), "BASE")
    rewritten = tuple(f"{folder}/{KIDNEY}/dataset.json" for folder in ("nnUNet_raw", "nnUNet_preprocessed"))
    return Attempt(f"conemos {shown}", run(*words), rewritten=rewritten, names_result=True)


def change_words(rng: random.Random, words: list[str]) -> None:
    """Change the words of a command line: most often the value of an option, or an option with its value."""
    place = rng.randrange(1, len(words)) if len(words) > 1 else 0
    values = [i for i in range(2, len(words)) if words[i - 1].startswith("-") and not words[i].startswith("-")]
    how = rng.choice(("value", "value", "value", "leave out", "leave out", "replace", "drop", "repeat", "swap", "add"))
    if how == "value" and values:
        words[rng.choice(values)] = odd_word(rng)
    elif how == "leave out" and values:
        place = rng.choice(values)
        del words[place - 1 : place + 1]
    elif how == "drop" and place:
        del words[place]
    elif how == "repeat" and place:
        words.insert(place, words[place])
    elif how == "swap" and place:
        words[place], words[1] = words[1], words[place]
    else:
        words[max(1, place) : max(1, place) + (how == "replace")] = [odd_word(rng)]


def odd_word(rng: random.Random) -> str:
    """Return an odd word for a command line; a process cannot be given NUL, and absolute paths stay in the base."""
    numbers = ("-1", "0", "1", "2", "1.5", "nan", "inf", "-inf", "1e309", "99999999999999999999", "0x1", "1,5", "٣")
    names = [name for name in mutate.NAMES if "\0" not in name and "\ud800" not in name and name != "/"]
    flags = ("--overwrite", "--complete", "--images", "--seed", "--groups", "-o", "--tags", "--unlabelled", "--", "-h")
    datasets = ("701", "703", "791", "Dataset791_Foreign", "Dataset702_Kidney", "9999", "Dataset780_Out", OUT)
    return rng.choice(rng.choice((numbers, names, flags, datasets)))


def command_lines(base: Path) -> list[tuple[object, ...]]:
    """Return valid command lines to begin with."""
    truth, one = base / "nnUNet_raw" / KIDNEY / "labelsTr", base / "predictions" / "one"
    single = ("-np", "1")
    return [
        ("merge", "701", "702", "-o", OUT, "--rename", "spleen=milt", "--keep-apart", "milt", *single),
        ("merge", "701", "703", "-o", OUT, "--drop", "core", "--images", "copy", "--channels", "CT=ct", *single),
        ("merge", "702", "-o", "Dataset791_Foreign", "--overwrite", *single),
        ("merge", "702", "-o", OUT, "--annotated", f"702:{base}/tables/kidney.csv", *single),
        ("hide", "702", "-o", OUT, "--per-case", "1", "--seed", "3", "--unlabelled", "0.2", "--tags", "z", *single),
        ("hide", "702", "-o", OUT, "--fraction", "0.5", "--images", "link", *single),
        ("hide", "702", "-o", "Dataset791_Foreign", "--fraction", "0.5", "--overwrite", *single),
        (
            "split",
            "702",
            "-o",
            OUT,
            "--setting",
            "ssl",
            "--labelled",
            "3",
            "--validation",
            "1",
            "--folds",
            "2",
            *single,
        ),
        ("split", "701", "-o", OUT, "--setting", "uda", "--source-domain", "here", "--target-domain", "there", *single),
        ("split", "701", "-o", OUT, "--setting", "semidg", "--labelled", "1", "--test-domain", "there", *single),
        ("declare", "702", "--annotated", base / "tables" / "kidney.json", "--missing", "all"),
        ("evaluate", truth, one, "--complete", "-o", base / "out", "--tolerance", "1", "--slices", "z", *single),
        ("evaluate", truth, one, "-d", "702", "-o", base / "out", "--chill", *single),
        ("compare", f"a={one}", f"b={one}", "--metric", "nsd", "-o", base / "out" / "table.csv"),
        ("best", "702", "-f", "0", "1", "-tr", "ConditionalFiLMTrainer", "--disable_ensembling", *single),
        ("slices", "702", "-c", "2d", "-p", "nnUNetPlans", "--batch", "4", "--name", "x"),
        ("export", "-m", base / "model", "--label", "liver", "-o", base / "out" / "model", "-f", "0"),
        ("adapt", base / "model" / "fold_0" / "checkpoint_final.pth", "-d", "702", "-o", base / "out" / "start.pth"),
    ]


def model(rng: random.Random, base: Path) -> Attempt:
    """The checkpoint, plans or dataset.json of a model folder, as `export` reads them."""
    name = rng.choice(("plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_0/checkpoint_final.pth"))
    file, damaged = base / "model" / name, ""
    if file.suffix == ".json":
        data, what = changed_json(rng, file.read_bytes())
        what += mutate.put(rng, file, data)
    elif rng.random() < 0.4:
        data = file.read_bytes()
        cut = rng.randrange(len(data))
        file.write_bytes(data[:cut])
        what, damaged = f"cut at {cut}", "truncated"
    else:
        content = torch.load(file, map_location="cpu", weights_only=False)
        key = rng.choice(list(content))
        if rng.random() < 0.5:
            del content[key]
            what = f"without {key}"
        else:
            content[key] = mutate.odd_value(rng)
            what = f"{key} = {mutate.shown(content[key])}"
        torch.save(content if rng.random() < 0.95 else mutate.odd_value(rng), file)
    call = run("export", "-m", base / "model", "--label", "liver", "-o", base / "out" / "model")
    names = (file.name, str(base / "model"), "label")
    return Attempt(f"{name}: {what}", call, names, damaged, (str(file.relative_to(base)),))


KINDS = {
    "dataset.json": Kind(30, dataset_json),
    "tables": Kind(16, table),
    "groups": Kind(3, groups),
    "merge recipes": Kind(10, merge_recipe),
    "benchmark recipes": Kind(6, benchmark_recipe),
    "splits": Kind(8, splits),
    "volumes": Kind(16, volume),
    "evaluations": Kind(3, scores),
    "options": Kind(12, options),
    "models": Kind(4, model),
}
