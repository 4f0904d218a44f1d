"""Write files and folders under a temporary name and rename them when they are complete."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunetv2_conemos.errors import ConemosError, ExistingFileError, FileError, InputError
from nnunetv2_conemos.journal import finish_or_undo, together
from nnunetv2_conemos.locks import is_abandoned, lock_file_of, locked, try_lock
from nnunetv2_conemos.ownership import require_own, write_record
from nnunetv2_conemos.signals import cleanup

Writer = Callable[[Path], Any]
FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG")}
TEMPORARY = r"\.([0-9a-f]{16}|\d+|unfinished)"  # after the name of a target; the latter two are of older versions


def write_together(files: Mapping[Path, Writer], target: Path) -> None:
    """Write several files, or none of them: after a failure or a kill, those already replaced are put back.

    After a kill, the next `exclusive(target)` does that. `target` is locked by the caller.
    """
    with ExitStack() as stack:
        together([(stack.enter_context(written(file, write)), file) for file, write in files.items()], target)


def write_aside(file: Path, write: Writer) -> None:
    """Write a file with `write` under a temporary name, then rename it."""
    with written(file, write) as aside:
        aside.replace(file)
    sync(file.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON with an indent of two, first under a temporary name."""
    write_aside(path, json_writer(content))


def json_writer(content: Any) -> Writer:
    """Return a function that writes JSON with an indent of two to a file."""
    return lambda file: file.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def written(file: Path, write: Writer) -> Iterator[Path]:
    """Yield the temporary name of a complete new file beside `file`; it is deleted unless the block renames it.

    A lock on it tells others that this process lives. Temporary files of processes that were killed are deleted.
    """
    discard_abandoned(file)
    aside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    with naming(file), ExitStack() as stack:
        stack.enter_context(cleanup(lambda: aside.unlink(missing_ok=True)))
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        stack.callback(os.close, descriptor)
        try_lock(descriptor)
        write(aside)
        if file.is_file():
            shutil.copymode(file, aside)
        os.fsync(descriptor)
        yield aside


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Be the only process that writes a target, and first repair what a killed one has left there.

    Raises FileError, naming the other process, where there is one.
    """
    with naming(target), locked(lock_file_of(target), target):
        for note in finish_or_undo(target):
            print(f"{target}: {note}", file=sys.stderr)
        for path in temporary_paths(target):
            if path.is_dir() and not path.is_symlink():
                remove(path)
        discard_abandoned(target)
        yield


@contextmanager
def new_folder(target: Path, overwrite: bool = False, files: Mapping[Path, Writer] | None = None) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `target` at the end, or deleted if the block raises.

    `files`, which the block may still add to, are written together with it. Raises FileExistsError where `target`
    exists, unless `overwrite` is set and this package wrote it, and FileError where another process writes it.
    """
    aside = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    with exclusive(target), cleanup(lambda: remove(aside)):
        require_absent(target, overwrite)
        aside.mkdir(parents=True)
        yield aside
        put_in_place(aside, target, files or {})


def require_absent(target: Path, overwrite: bool) -> None:
    """Raise FileExistsError where a file or folder exists and `overwrite` is not set, or others wrote into it.

    What a killed command left there is repaired first; raises FileError where another process writes it.
    """
    with exclusive(target):
        if os.path.lexists(target) and not overwrite:
            raise ExistingFileError(f"{target} exists. Choose another name, or pass --overwrite to replace it.")
        if target.is_dir() and not target.is_symlink():
            require_own(target)


def require_no_inputs_within(target: Path, files: Iterable[Path]) -> None:
    """Raise ValueError where files to be read lie in the folder to be written."""
    own = next((file for file in files if target.resolve() in file.resolve().parents), None)
    if own is not None:
        raise InputError(f"{target} holds files that are read to make the result ({own}). Choose another name.")


def put_in_place(aside: Path, target: Path, files: Mapping[Path, Writer]) -> None:
    """Rename a finished folder, and files written with it, to their targets; what they replace is deleted last."""
    write_record(aside)
    sync(aside)
    with ExitStack() as stack:
        pairs = [(stack.enter_context(written(file, write)), file) for file, write in files.items()]
        together([*pairs, (aside, target)], target)
    sync(target.parent)


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Say in errors of the file system which target was being written, and that nothing was replaced."""
    try:
        yield
    except ConemosError:
        raise
    except OSError as error:
        if error.errno in FULL:
            place = error.filename2 or error.filename or target
            raise FileError(
                f"{target} was not written: {error.strerror} ({place}). Nothing was replaced. Free some space or raise "
                "the quota, then run this again."
            ) from error
        if isinstance(error, FileNotFoundError | FileExistsError):  # their own texts say enough
            raise
        raise FileError(f"{target} was not written: {error}. Nothing was replaced.") from error


def temporary_paths(target: Path) -> list[Path]:
    """Return the files and folders beside a target that have a temporary name of it."""
    pattern = re.compile(rf"\.{re.escape(target.name)}{TEMPORARY}")
    with suppress(OSError):
        return [target.parent / name for name in os.listdir(target.parent) if pattern.fullmatch(name)]
    return []


def discard_abandoned(file: Path) -> None:
    """Delete the temporary files of a target whose processes have ended."""
    for path in temporary_paths(file):
        if is_abandoned(path):
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file or folder to disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a folder, a file or a link, if it exists."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
