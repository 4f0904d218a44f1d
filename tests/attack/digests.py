"""What lies in folders, by content: files that mean the same have one digest."""

from __future__ import annotations

import zipfile
from hashlib import blake2b
from pathlib import Path


def tree(base: Path, *, hidden: bool = False) -> dict[str, str]:
    """Return path -> digest of all files below a folder; hidden ones only, or all others. Links count as text."""
    found = {}
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base)
        if any(part.startswith(".") for part in name.parts) == hidden and (path.is_symlink() or not path.is_dir()):
            found[str(name)] = digest(path)
    if hidden:
        found |= {str(p.relative_to(base)): "folder" for p in base.rglob(".*") if p.is_dir() and not p.is_symlink()}
    return found


def digest(file: Path) -> str:
    """Return a digest of the content of a file; of zip files, of what they hold, without times and top folders."""
    if file.is_symlink():
        return f"-> {file.readlink()}"
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = sorted(name for name in archive.namelist() if not name.endswith("serialization_id"))
            parts = [(name.partition("/")[2] if file.suffix == ".pth" else name, archive.read(name)) for name in names]
        return blake2b(repr(parts).encode(), digest_size=12).hexdigest()
    return blake2b(file.read_bytes(), digest_size=12).hexdigest()


def below(names: dict[str, str], part: str) -> dict[str, str]:
    """Return the files that are `part` or lie below it."""
    return {name: value for name, value in names.items() if name == part or name.startswith(f"{part}/")}
