"""Write checkpoints whole or not at all, and read them without running code that they may hold."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_conemos.errors import FileError, MissingFileError, SourceError, brief
from nnunetv2_conemos.files import discard_abandoned, write_aside

NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")  # in nnU-Net's order for --c
MODEL_KEYS = ("network_weights", "init_args")
RESUME_KEYS = (*MODEL_KEYS, "optimizer_state", "current_epoch", "logging", "_best_ema")
DTYPES = ("float64", "float32", "float16", "int64", "int32", "bool")  # of the numbers in nnU-Net's log


def safe_types() -> list[Any]:
    """Return what torch may load beside weights: the numpy numbers of nnU-Net's log, under old and new names."""
    scalar = np.float64(0).__reduce__()[0]
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [np.dtype, *(type(np.dtype(name)) for name in DTYPES), *((scalar, name) for name in names)]


def save(content: Any, file: Path) -> None:
    """Write a file of torch's; raises OSError where the disk is full, for which torch raises a RuntimeError."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        raise FileError(full(file, error)) from error


def full(file: Path, error: Exception) -> str:
    return (
        f"{file} could not be written: {brief(error)}. Most often the disk is full, or a quota reached. What was there "
        "before is untouched. Free some space, then run this again (a training: with --c)."
    )


def write_checkpoint(file: Path, write: Callable[[Path], Any]) -> None:
    """Write a checkpoint aside and verify it before it takes the place of another; raises OSError where it cannot."""

    def verified(aside: Path) -> None:
        try:
            write(aside)
        except RuntimeError as error:
            if "file" not in str(error) and "unexpected pos" not in str(error):
                raise
            raise FileError(full(file, error)) from error
        if not zipfile.is_zipfile(aside):
            raise FileError(full(file, OSError("it was cut off")))

    write_aside(file, verified)


def load(file: Path, keys: Sequence[str] = MODEL_KEYS, mapped: bool = False) -> dict[str, Any]:
    """Load a checkpoint to the CPU; raises an error that names the file for one that is damaged, or lacks a key.

    `mapped`: read weights when they are used, for files that nobody writes to meanwhile. A checkpoint that holds other
    objects than nnU-Net and this package write is refused: loading these runs code.
    """
    if not file.is_file():
        raise MissingFileError(f"checkpoint {file} does not exist.")
    if not zipfile.is_zipfile(file):
        size = file.stat().st_size
        raise FileError(f"{file} cannot be read as a checkpoint ({size} bytes): cut off, or another kind of file.")
    allow: Any = getattr(torch.serialization, "safe_globals", None)  # torch 2.3 and 2.4 lack it
    try:
        with allow(safe_types()) if allow else nullcontext():
            content = torch.load(file, map_location="cpu", mmap=mapped, weights_only=allow is not None)
    except pickle.UnpicklingError as error:
        raise FileError(
            f"{file} cannot be read as a checkpoint: it holds {foreign(error)}, and loading more than weights, numbers "
            "and texts could run code. Expected a checkpoint that nnU-Net or this package wrote."
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise FileError(f"{file} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise SourceError(f"{file} is not a checkpoint of nnU-Net: expected a dict, found {type(content).__name__}.")
    if lacking := [key for key in keys if key not in content]:
        raise SourceError(f"{file} is not a checkpoint of nnU-Net: it lacks {', '.join(lacking)}.")
    return content


def foreign(error: pickle.UnpicklingError) -> str:
    """Return what torch's message says about the object that it refuses to load."""
    found = re.search(r"GLOBAL (\S+)|[Tt]rying to call (\S+)", str(error))
    return f"an object of {next(filter(None, found.groups()))}" if found else "an object of another kind"


class WholeCheckpoints(nnUNetTrainer):
    """nnU-Net's trainer, which keeps the checkpoint before until a new one is complete."""

    output_folder: str

    def on_train_start(self) -> None:
        if self.local_rank == 0:
            for name in NAMES:  # left by a training that was killed
                discard_abandoned(Path(self.output_folder) / name)
        super().on_train_start()

    def save_checkpoint(self, filename: str) -> None:
        """Save a checkpoint as nnU-Net does, first under a temporary name."""
        if self.local_rank != 0 or self.disable_checkpointing:
            return super().save_checkpoint(filename)
        return write_checkpoint(Path(filename), self.write_checkpoint)

    def write_checkpoint(self, file: Path) -> None:
        """Write the content of a checkpoint to a file."""
        super().save_checkpoint(str(file))

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Load a checkpoint as nnU-Net does; raises an error that names the file where it is damaged."""
        if isinstance(filename_or_checkpoint, str):
            require_resumable(Path(filename_or_checkpoint))
        super().load_checkpoint(filename_or_checkpoint)


def require_resumable(file: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; raises an error that says what --c can continue from where it is damaged."""
    try:
        return load(file, RESUME_KEYS, mapped=True)
    except (FileError, SourceError) as error:
        others = [name for name in NAMES if name != file.name and zipfile.is_zipfile(file.with_name(name))]
        way = (
            f"Move it away: --c then continues from {others[0]}." if others else "Move it away and train from scratch."
        )
        raise FileError(f"{error} {way}") from None
