"""Write files and folders under a temporary name and rename them when they are complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_conemos.errors import ExistingFileError, InputError


def write_together(files: Mapping[Path, Any]) -> None:
    """Replace several existing JSON files, or none of them: after a failure, those already replaced are put back."""
    before = {path: json.loads(path.read_text()) for path in files}
    replaced: list[Path] = []
    try:
        for path, content in files.items():
            write_json(path, content)
            replaced.append(path)
    except OSError:
        for path in replaced:
            write_json(path, before[path])
        raise


def write_aside(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a file with `write` under a temporary name, then rename it."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    write(aside)
    aside.replace(file)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with an indent of two, first under a temporary name."""
    write_aside(path, lambda file: file.write_text(json.dumps(content, indent=2) + "\n"))


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `target` at the end, or deleted if the block raises.

    Raises FileExistsError where `target` exists, unless `overwrite` is set.
    """
    require_absent(target, overwrite)
    aside = target.with_name(f".{target.name}.unfinished")
    remove(aside)  # left by a run that was killed
    aside.mkdir(parents=True)
    try:
        yield aside
        put_in_place(aside, target)
    finally:
        remove(aside)


def require_absent(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError where a file or folder exists and `overwrite` is not set."""
    if os.path.lexists(target) and not overwrite:
        raise ExistingFileError(f"{target} exists. Choose another name, or pass --overwrite to replace it.")


def require_no_inputs_within(target: Path, files: Iterable[Path]) -> None:
    """Raise ValueError where files to be read lie in the folder to be written."""
    own = next((file for file in files if target.resolve() in file.resolve().parents), None)
    if own is not None:
        raise InputError(f"{target} holds files that are read to make the result ({own}). Choose another name.")


def put_in_place(aside: Path, target: Path) -> None:
    """Rename a finished folder to `target`; what it replaces is deleted last, and put back if renaming fails."""
    replaced = target.with_name(f".{target.name}.replaced")
    remove(replaced)
    if os.path.lexists(target):
        target.replace(replaced)
    try:
        aside.replace(target)
    except BaseException:
        if os.path.lexists(replaced):
            replaced.replace(target)
        raise
    remove(replaced)


def remove(path: Path) -> None:
    """Delete a folder, a file or a link, if it exists."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
