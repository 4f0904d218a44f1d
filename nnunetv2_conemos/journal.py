"""Rename several finished files, and at most one folder, to their targets: all of them or none, even after a kill.

The last rename decides. Before the first one, a journal beside the target says what is going to be replaced; after a
kill, the next command with the same target undoes the renames if the last one is missing.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nnunetv2_conemos.errors import FileError
from nnunetv2_conemos.signals import cleanup

Pair = tuple[Path, Path]  # the temporary name and the target of a finished file or folder


def journal_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.journal")


def replaced_name(target: Path) -> Path:
    """Return where the file or folder that is being replaced is kept until the end."""
    return target.with_name(f".{target.name}.replaced")


def together(pairs: Sequence[Pair], target: Path) -> None:
    """Rename all pairs, or none of them; the journal lies beside `target`, which the caller has locked.

    Only the last pair may be a folder.
    """
    *first, last = pairs
    journal = journal_of(target)
    with cleanup(lambda: _finish_or_undo(journal, last[1])):
        if first:
            _write(journal, {"last": str(last[0].absolute()), "files": [_entry(*pair) for pair in first]})
        for aside, file in first:
            _keep(file)
            aside.replace(file)
        if last[0].is_dir() and os.path.lexists(last[1]):
            last[1].replace(replaced_name(last[1]))
        last[0].replace(last[1])


def finish_or_undo(target: Path) -> Iterator[str]:
    """Repair what a killed command left in the place of a target; yield what was done, in words.

    Raises FileError for the journal of another user.
    """
    yield from _repairs(journal_of(target), target)


def _finish_or_undo(journal: Path, target: Path) -> None:
    for _ in _repairs(journal, target):
        pass


def _repairs(journal: Path, target: Path) -> Iterator[str]:
    content = _read(journal)
    if content is not None:
        finished = not os.path.lexists(content["last"])
        for entry in content["files"]:
            file = Path(entry["file"])
            if not finished and _is(file, entry["inode"]):
                file.unlink() if entry["new"] else replaced_name(file).replace(file)
                yield f"{file} was put back as it was before a command that did not finish."
            _discard(replaced_name(file))
        journal.unlink()
    replaced = replaced_name(target)
    if os.path.lexists(replaced) and not os.path.lexists(target):
        replaced.replace(target)
        yield "was put back as it was before a command that did not finish."
    _discard(replaced)


def _entry(aside: Path, file: Path) -> dict[str, Any]:
    return {"file": str(file.absolute()), "inode": aside.stat().st_ino, "new": not os.path.lexists(file)}


def _keep(file: Path) -> None:
    """Give a file that will be replaced a second name."""
    if os.path.lexists(file):
        kept = replaced_name(file)
        kept.unlink(missing_ok=True)
        try:
            os.link(file, kept, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(file, kept, follow_symlinks=False)


def _is(file: Path, inode: int) -> bool:
    with suppress(OSError):
        return file.lstat().st_ino == inode
    return False


def _write(journal: Path, content: dict[str, Any]) -> None:
    aside = journal.with_name(f"{journal.name}.new")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with open(descriptor, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(descriptor)
    aside.replace(journal)


def _read(journal: Path) -> dict[str, Any] | None:
    """Read a journal of this user; a link or a file of another one could name any file."""
    journal.with_name(f"{journal.name}.new").unlink(missing_ok=True)
    if not os.path.lexists(journal):
        return None
    facts = journal.lstat()
    if journal.is_symlink() or (hasattr(os, "geteuid") and facts.st_uid != os.geteuid()):
        raise FileError(f"{journal} was left by another user's command. Let them run it again, or delete the file.")
    return json.loads(journal.read_text())


def _discard(path: Path) -> None:
    """Delete a file, link or folder; a folder gets another name first, since half of it must never be put back."""
    doomed = path.with_name(path.name.removesuffix(".replaced") + ".unfinished")
    shutil.rmtree(doomed, ignore_errors=True)  # left where a signal ended the lines below
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):  # a full disk may have no room for another name; deleting needs none
            path = path.replace(doomed)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
