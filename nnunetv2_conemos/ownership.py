"""Record what this package wrote into a folder, so that `--overwrite` never deletes anything else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import nnunetv2_conemos
from nnunetv2_conemos.errors import ExistingFileError, shorten

RECORD = "conemos.json"  # in every folder that is written whole
# Datasets of versions without a record: what they consist of, and what is found in no other dataset.
SIGNS = ("merge_report.json", "labelsTr_complete", "completion.json")
DATASET = re.compile(
    r"dataset\.json|splits_final\.json|merge_re(port|cipe)\.(json|png|yaml)|completion\.json|"
    r"(imagesTr|labelsTr|labelsTr_complete|(images|labels)Ts_fold_\d+)/[^/]+"
)


def write_record(folder: Path) -> None:
    """Write the names of all files in a finished folder to its record."""
    content = {"written_by": f"nnunetv2_conemos {nnunetv2_conemos.__version__}", "files": files_in(folder)}
    (folder / RECORD).write_text(json.dumps(content, indent=1) + "\n")


def files_in(folder: Path) -> list[str]:
    """Return the files, links and empty folders below a folder, sorted; links are not followed."""
    found = []
    for path, folders, files in os.walk(folder):
        here = Path(path).relative_to(folder)
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        found += [(here / name).as_posix() for name in (*files, *links)]
        if not folders and not files and path != str(folder):
            found.append(here.as_posix())
    return sorted(found)


def require_own(folder: Path) -> None:
    """Raise FileExistsError where a folder holds anything that this package did not write there."""
    found = [name for name in files_in(folder) if name != RECORD]
    recorded = _recorded(folder / RECORD)
    if recorded is None and _is_of_old_version(folder, found):
        return
    if recorded is None and found:
        raise ExistingFileError(
            f"{folder}: nothing says that this package wrote it (there is no {RECORD}), so --overwrite does not replace"
            f" it. It holds {shorten(found, 5)}. Delete it yourself, or choose another name."
        )
    if others := sorted(set(found) - set(recorded or ())):
        raise ExistingFileError(
            f"{folder} holds {shorten(others, 5)}, which this package did not write, so --overwrite does not replace "
            "it. Move that away, or choose another name."
        )


def _recorded(file: Path) -> list[str] | None:
    try:
        content: Any = json.loads(file.read_text())
        return [str(name) for name in content["files"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _is_of_old_version(folder: Path, found: list[str]) -> bool:
    signed = any((folder / sign).exists() for sign in SIGNS)
    return signed and all(DATASET.fullmatch(name) for name in found)
