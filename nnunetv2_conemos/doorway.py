"""`eval "$(conemos env)"`: let nnU-Net's trainer look-up find the trainers of this package.

nnU-Net imports everything below each folder of `nnUNet_extTrainer` and afterwards forgets those modules again, so the
variable must name the folder of the one doorway file: never the repository, never site-packages.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

VARIABLE = "nnUNet_extTrainer"
DOORWAY = "conemos_trainers.py"
PACKAGE = Path(__file__).resolve().parent


def doorway_folder(package: Path = PACKAGE) -> Path:
    """`<package>/trainers` in an installed wheel, `<package>/../trainers` in a checkout.

    Raises FileNotFoundError where neither holds the doorway file.
    """
    candidates = (package / "trainers", package.parent / "trainers")
    for folder in candidates:
        if (folder / DOORWAY).is_file():
            return folder
    raise FileNotFoundError(
        f"{DOORWAY} is neither in {candidates[0]} nor in {candidates[1]}. Install the package again (`pip install .`)."
    )


def trainer_path(current: str | None, doorway: Path) -> str:
    """Value of `nnUNet_extTrainer`: the doorway first, then the other folders already in it, each once."""
    others = [folder for folder in (current or "").split(os.pathsep) if folder.strip()]
    kept = [folder for folder in others if Path(folder).resolve() != doorway.resolve()]
    return os.pathsep.join(dict.fromkeys([str(doorway), *kept]))


def export_line(current: str | None, doorway: Path) -> str:
    return f"export {VARIABLE}={shlex.quote(trainer_path(current, doorway))}"


def register_trainers() -> None:
    """Let nnU-Net find the trainers from within this program, as `conemos env` does for a shell."""
    os.environ[VARIABLE] = trainer_path(os.environ.get(VARIABLE), doorway_folder())
