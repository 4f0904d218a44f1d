"""Let nnU-Net find the trainers of this package: the variable `nnUNet_extTrainer` and the doorway file that it names.

nnU-Net imports everything below each folder of `nnUNet_extTrainer` and then removes those modules from `sys.modules`,
so the variable must name the folder of the one doorway file, never the repository or site-packages.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from nnunetv2_conemos.errors import MissingFileError

VARIABLE = "nnUNet_extTrainer"
DOORWAY = "conemos_trainers.py"
PACKAGE = Path(__file__).resolve().parent


def doorway_folder(package: Path = PACKAGE) -> Path:
    """Return the folder of the doorway: `<package>/trainers` in a wheel, `<package>/../trainers` in a checkout.

    Raises FileNotFoundError where neither holds the doorway file.
    """
    candidates = (package / "trainers", package.parent / "trainers")
    for folder in candidates:
        if (folder / DOORWAY).is_file():
            return folder
    raise MissingFileError(
        f"{DOORWAY} is neither in {candidates[0]} nor in {candidates[1]}. Install the package again (`pip install .`)."
    )


def trainer_path(current: str | None, doorway: Path) -> str:
    """Return the value of `nnUNet_extTrainer`: the doorway first, then the other folders of `current`, each once."""
    others = [folder for folder in (current or "").split(os.pathsep) if folder.strip()]
    kept = [folder for folder in others if Path(folder).resolve() != doorway.resolve()]
    return os.pathsep.join(dict.fromkeys([str(doorway), *kept]))


def export_line(current: str | None, doorway: Path) -> str:
    """Return the line of shell that sets `nnUNet_extTrainer`, given its current value."""
    return f"export {VARIABLE}={shlex.quote(trainer_path(current, doorway))}"


def register_trainers() -> None:
    """Set `nnUNet_extTrainer` in this process, as `eval "$(conemos env)"` does in a shell."""
    os.environ[VARIABLE] = trainer_path(os.environ.get(VARIABLE), doorway_folder())
