"""A folder that is restored after each attempt: what changed in it is seen by sizes and times."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from attack.mutate import remove


class Restored:
    """A copy `base` of a template beside it; `results` are the paths below it that an attempt may make."""

    def __init__(self, folder: Path, template: Path, results: tuple[str, ...]):
        self.base, self.template, self.results = folder / "base", template, results
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template, self.base, symlinks=True)
        (self.base / "out").mkdir(exist_ok=True)
        self.stamps = self._stamps()

    def changed(self) -> set[str]:
        """Return the files that were made, changed or deleted since the last `restore`, here or beside the base."""
        now = self._stamps()
        return {name for name in {**now, **self.stamps} if now.get(name) != self.stamps.get(name)}

    def restore(self) -> None:
        """Make the folder as the template is."""
        for part in self.results:
            shutil.rmtree(self.base / part, ignore_errors=True)
        for name in sorted(self.changed(), key=len):
            target, original = self.base / name, self.template / name
            if os.path.lexists(target):
                remove(target)
            if original.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(original, target)
        (self.base / "out").mkdir(exist_ok=True)
        self.stamps = self._stamps()

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Return path -> size and time of every file below the folder that holds the base."""
        found = {}
        for top, folders, files in os.walk(self.base.parent):
            links = [name for name in folders if os.path.islink(os.path.join(top, name))]
            for name in (*files, *links):
                path = os.path.join(top, name)
                stat = os.lstat(path)
                found[os.path.relpath(path, self.base)] = (stat.st_size, stat.st_mtime_ns)
        return found
