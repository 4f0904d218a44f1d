"""Make a copy of a dataset with the folds of a semi-supervised setting.

`sources` says which cases are labelled, and the label maps of all others are empty; `splits_final.json`, which planning
copies, says which take part in a fold. Annotated cases of a held-out domain become test cases of the copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.dataset_json import SHARED_KEYS, read_dataset_json
from nnunetv2_conemos.datasets.folders import named_or_path, new_dataset_folder
from nnunetv2_conemos.datasets.partial_copy import Original, hidden_jobs, plan_copy, read_original, write_copy
from nnunetv2_conemos.datasets.splits import SPLITS, Fold
from nnunetv2_conemos.datasets.ssl_settings import Amounts, Roles, check_roles, folds_of, semidg, ssl, uda
from nnunetv2_conemos.datasets.writer import Images, write_cases
from nnunetv2_conemos.errors import ExistingFileError, InputError, shorten
from nnunetv2_conemos.files import json_writer, require_absent, write_json
from nnunetv2_conemos.text_files import read_shared_json

Setting = Literal["ssl", "uda", "semidg"]
Number = int | float | str  # of cases; below 1 a fraction of them


class Domains(NamedTuple):
    """The domains that a setting names: two kinds belong to `uda`, the third to `semidg`."""

    source: Sequence[str] = ()
    target: Sequence[str] = ()
    test: Sequence[str] = ()


class SplitReport(NamedTuple):
    """Result of `split`: the raw folder written, who annotated what before and after, roles, folds, and notes."""

    folder: Path
    original: SourceTable
    table: SourceTable
    roles: Roles
    folds: list[Fold]
    notes: list[str]


def split(
    dataset: str | int | Path,
    output: str | Path,
    *,
    setting: Setting,
    labelled: Number | None = None,
    validation: Number | None = None,
    source_domains: Sequence[str] = (),
    target_domains: Sequence[str] = (),
    test_domains: Sequence[str] = (),
    folds: int | None = None,
    seed: int = 0,
    images: Images = "reference",
    processes: int = 1,
    overwrite: bool = False,
) -> SplitReport:
    """Write a copy of a raw dataset with the folds of a semi-supervised setting; it appears whole or not at all.

    Args:
        dataset: id, name or path of the raw dataset.
        output: name or path of the new one, `Dataset100_Name`.
        setting: `ssl` (few labels), `uda` (labels of other domains) or `semidg` (few labels in several domains, others
            to test on).
        labelled: annotated cases that stay labelled (`semidg`: in each domain): a number, or a fraction below 1. Only
            `uda` has a default, all.
        validation: number of further annotated cases (`uda`: of the target domains) that validate; None: labelled
            ones do.
        source_domains: for `uda`; default: all but the targets.
        target_domains: for `uda`: domains that are used without labels.
        test_domains: for `semidg`: domains that are unseen, each in a fold of its own; default: all.
        folds: number of folds of the labelled cases; default: 5, or as many as there are cases.
        seed: of the random choice.
        images: how images are kept.
        processes: how many read and write cases; more than one requires a script with `if __name__ == "__main__":`.
        overwrite: replace an existing dataset of that name.

    Raises ValueError for options that do not fit the dataset or each other, SourceError for unknown domains and labels
    that would be lost, OSError for files that are missing, cannot be read, or exist.
    """
    raw, target = named_or_path(dataset), new_dataset_folder(output)
    require_absent(target, overwrite)
    original = read_original(raw)
    if folds and validation is not None:
        raise InputError(
            "--folds divides labelled cases into folds, --validation chooses others to validate: pass one of them."
        )
    amounts = Amounts(share("labelled", labelled), share("validation", validation))
    domains = Domains(source_domains, target_domains, test_domains)
    roles = roles_of(original.table, setting, amounts, domains, seed)
    kept = roles.labelled | roles.validation
    annotated = {case: list(original.table.annotated(case)) if case in kept else [] for case in sorted(roles.cases)}
    copy = plan_copy(original, annotated)
    made = folds_of(copy.table, roles, folds, seed)
    preprocessed = preprocessed_split(target.name, copy.dataset_json, made, overwrite)
    second = {preprocessed.resolve(): json_writer(made)} if preprocessed else {}
    with write_copy(copy, target, images, processes, overwrite, second) as folder:
        write_json(folder / SPLITS, made)
        for fold, domain in enumerate(roles.held_out):
            write_unseen(original, domain, folder, fold, images, processes)
    notes = list(notes_on(setting, original, copy.table, made, validates_on_target=validation is not None))
    return SplitReport(target, original.table, copy.table, roles, made, notes)


def roles_of(table: SourceTable, setting: Setting, amounts: Amounts, domains: Domains, seed: int) -> Roles:
    """Assign the roles of a setting to cases; raises ValueError for domains that belong to another setting."""
    for option, named in domains._asdict().items():
        owner = "semidg" if option == "test" else "uda"
        if named and setting != owner:
            raise InputError(f"--{option}-domain belongs to --setting {owner}, not to {setting}.")
    if amounts.labelled is None and setting != "uda":
        raise InputError(f"--setting {setting}: pass --labelled, the number of cases that stay labelled.")
    rng = np.random.default_rng(seed)
    if setting == "uda":
        roles = uda(table, domains.source, domains.target, amounts, rng)
    elif setting == "semidg":
        roles = semidg(table, domains.test, amounts, rng)
    else:
        roles = ssl(table, amounts, rng)
    check_roles(table, roles)
    return roles


def share(option: str, number: Number | None) -> Fraction | None:
    """Read a number of cases, or a fraction of them below 1, without the rounding of floating point."""
    if number is None:
        return None
    with suppress(ValueError, ZeroDivisionError):
        read = Fraction(str(number))
        if 0 < read < 1 or read >= 1 == read.denominator:
            return read
    raise InputError(f"--{option} {number}: expected a number of cases (4), or a fraction of them below 1 (0.05).")


def preprocessed_split(name: str, dataset_json: dict[str, Any], folds: list[Fold], overwrite: bool) -> Path | None:
    """Return the second file to write, since nnU-Net plans only where raw and preprocessed folds are the same.

    None where the dataset is not preprocessed. Raises FileExistsError where it is, with other folds (unless `overwrite`
    is set) or from label maps in which other cases are annotated.
    """
    folder = Path(nnUNet_preprocessed) / name if nnUNet_preprocessed.is_set() else None
    if folder is None or not folder.is_dir():
        return None
    if (folder / "dataset.json").is_file():
        theirs = read_dataset_json(folder)
        if any(theirs.get(key) != dataset_json.get(key) for key in SHARED_KEYS):
            raise ExistingFileError(
                f"{folder} was preprocessed from label maps in which other cases are annotated. Delete it, or choose "
                "another name."
            )
    file = folder / SPLITS
    if not overwrite and file.is_file() and read_shared_json(file) != folds:
        raise ExistingFileError(f"{file} holds other folds. Pass --overwrite to replace them, or choose another name.")
    return file


def write_unseen(original: Original, domain: str, folder: Path, fold: int, images: Images, processes: int) -> None:
    """Write the annotated cases of a domain that a fold does not see, as images and label maps to test on."""
    table, aside = original.table, folder / ".unseen"
    cases = {c: list(table.annotated(c)) for c in table.cases if table.domain_of(c) == domain and table.known(c).any()}
    aside.mkdir()
    kept: Images = "copy" if images == "copy" else "link"
    ending = original.dataset_json["file_ending"]
    write_cases(hidden_jobs(original, cases), aside, ending, kept, processes, f"Test cases: {domain}")
    for part in ("images", "labels"):
        (aside / f"{part}Tr").rename(folder / f"{part}Ts_fold_{fold}")
    aside.rmdir()


def notes_on(
    setting: Setting, original: Original, table: SourceTable, folds: Sequence[Fold], validates_on_target: bool
) -> Iterator[str]:
    """Yield notes for the user about the folds."""
    if "tags" in original.dataset_json:
        yield "Image tags are left out: what is not labelled is unlabelled."
    for number, fold in enumerate(folds):
        if untrained := set(table.never_annotated(fold["train"])) - set(table.never_annotated()):
            yield f"Fold {number} does not train {shorten(sorted(untrained))}: all cases annotated for it validate."
    if setting == "uda" and validates_on_target:
        yield "Validation, and with it the best checkpoint, uses annotations of the target domain."
