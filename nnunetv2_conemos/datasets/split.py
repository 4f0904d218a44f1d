"""`conemos split`: a copy of a dataset with the folds of a semi-supervised setting.

Which cases are labelled is said by `sources`, and the label maps of all others are empty; which take part in a fold is
said by `splits_final.json`, which planning copies. Annotated cases of a held-out domain are test cases beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import SHARED_KEYS, read_dataset_json
from nnunetv2_conemos.datasets.partial_copy import (
    HiddenCopy,
    Original,
    hidden_copy,
    hidden_jobs,
    read_original,
    written,
)
from nnunetv2_conemos.datasets.splits import Fold
from nnunetv2_conemos.datasets.ssl_settings import Amounts, Roles, check_roles, folds_of, semidg, ssl, uda
from nnunetv2_conemos.datasets.writer import Images, write_cases
from nnunetv2_conemos.errors import shorten
from nnunetv2_conemos.files import require_absent, write_json

SPLITS = "splits_final.json"
DOMAINS = {"source_domain": "uda", "target_domain": "uda", "test_domain": "semidg"}  # option -> setting that has it


def roles_of(args: argparse.Namespace, table: SourceTable) -> Roles:
    """The roles of the cases that the command line asks for; raises ValueError for options of another setting."""
    for option, setting in DOMAINS.items():
        if getattr(args, option) and setting != args.setting:
            raise ValueError(f"--{option.replace('_', '-')} belongs to --setting {setting}, not to {args.setting}.")
    if args.labelled is None and args.setting != "uda":
        raise ValueError(f"--setting {args.setting}: say how many cases stay --labelled.")
    if args.folds and args.validation:
        raise ValueError("--folds deals labelled cases to folds, --validation draws others to validate: say one.")
    amounts = Amounts(share("labelled", args.labelled), share("validation", args.validation))
    rng = np.random.default_rng(args.seed)
    if args.setting == "uda":
        roles = uda(table, args.source_domain, args.target_domain, amounts, rng)
    elif args.setting == "semidg":
        roles = semidg(table, args.test_domain, amounts, rng)
    else:
        roles = ssl(table, amounts, rng)
    check_roles(table, roles)
    return roles


def share(option: str, text: str | None) -> Fraction | None:
    """A number of cases, or a fraction of them below 1, without the rounding of floating point."""
    if text is None:
        return None
    with suppress(ValueError, ZeroDivisionError):
        number = Fraction(text)
        if 0 < number < 1 or number >= 1 == number.denominator:
            return number
    raise ValueError(f"--{option} {text}: expected a number of cases (4), or a fraction of them below 1 (0.05).")


def split(raw: Path, target: Path, args: argparse.Namespace) -> tuple[Original, Roles, HiddenCopy, list[Fold]]:
    """Write the copy with its folds, whole or not at all."""
    require_absent(target, args.overwrite)
    original = read_original(raw)
    roles = roles_of(args, original.table)
    kept = roles.labelled | roles.validation
    annotated = {case: list(original.table.annotated(case)) if case in kept else [] for case in sorted(roles.cases)}
    copy = hidden_copy(original, annotated)
    folds = folds_of(copy.table, roles, args.folds, args.seed)
    preprocessed = preprocessed_split(target.name, copy.dataset_json, folds, args.overwrite)
    with written(copy, target, args.images, args.processes, args.overwrite) as folder:
        write_json(folder / SPLITS, folds)
        for fold, domain in enumerate(roles.held_out):
            write_unseen(original, domain, folder, fold, args)
    if preprocessed is not None:
        write_json(preprocessed, folds)
    return original, roles, copy, folds


def preprocessed_split(name: str, dataset_json: dict[str, Any], folds: list[Fold], overwrite: bool) -> Path | None:
    """The second file to write: nnU-Net plans only where the preprocessed folds are those of the raw dataset.

    None where the dataset is not preprocessed. Raises FileExistsError where it is, with other folds (unless they are
    to be replaced) or from label maps in which other cases are annotated.
    """
    folder = Path(nnUNet_preprocessed) / name if nnUNet_preprocessed.is_set() else None
    if folder is None or not folder.is_dir():
        return None
    if (folder / "dataset.json").is_file():
        theirs = read_dataset_json(folder)
        if any(theirs.get(key) != dataset_json.get(key) for key in SHARED_KEYS):
            raise FileExistsError(
                f"{folder} was preprocessed from label maps in which other cases are annotated. Delete it, or choose "
                "another name."
            )
    file = folder / SPLITS
    if file.is_file() and json.loads(file.read_text()) != folds and not overwrite:
        raise FileExistsError(f"{file} holds other folds. Say --overwrite to replace them, or choose another name.")
    return file


def write_unseen(original: Original, domain: str, folder: Path, fold: int, args: argparse.Namespace) -> None:
    """The annotated cases of a domain that a fold does not see, as images and label maps to test on."""
    table, aside = original.table, folder / ".unseen"
    cases = {c: list(table.annotated(c)) for c in table.cases if table.domain_of(c) == domain and table.known(c).any()}
    aside.mkdir()
    images: Images = "copy" if args.images == "copy" else "link"
    ending = original.dataset_json["file_ending"]
    write_cases(hidden_jobs(original, cases), aside, ending, images, args.processes, f"Test cases: {domain}")
    for part in ("images", "labels"):
        (aside / f"{part}Tr").rename(folder / f"{part}Ts_fold_{fold}")
    aside.rmdir()


def notes(args: argparse.Namespace, original: Original, table: SourceTable, folds: Sequence[Fold]) -> Iterator[str]:
    if "tags" in original.dataset_json:
        yield "Image tags are left out: what is not labelled is unlabelled."
    for number, fold in enumerate(folds):
        if never_annotated := set(table.never_annotated(fold["train"])) - set(table.never_annotated()):
            yield f"Fold {number} does not teach {shorten(sorted(never_annotated))}: its only annotated cases validate."
    if args.setting == "uda" and args.validation:
        yield "Validation, and with it the best checkpoint, looks at annotations of the target domain."
