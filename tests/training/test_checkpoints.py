"""Checkpoints are whole, whatever interrupts their writing, and run no code when they are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import FULL, KILL, run_forked

from nnunetv2_conemos import methods
from nnunetv2_conemos.errors import FileError, SourceError
from nnunetv2_conemos.training import stock
from nnunetv2_conemos.training.checkpoints import WholeCheckpoints, load, require_resumable, write_checkpoint


def content(epoch: int) -> dict:
    return {
        "network_weights": {"w": torch.full((20000,), float(epoch))},
        "init_args": {"device": torch.device("cpu")},
        "optimizer_state": {},
        "current_epoch": epoch,
        "logging": {"mean_fg_dice": [np.float32(0.5), np.float64(0.25), np.int64(3)]},
        "_best_ema": np.float64(0.5),
    }


def write(file: Path, epoch: int) -> None:
    write_checkpoint(file, lambda aside: torch.save(content(epoch), aside))


def test_every_trainer_writes_whole_checkpoints():
    ours = [*stock.TRAINERS.values(), *(getattr(methods, name) for name in methods.__all__)]
    assert len(ours) > 20
    for trainer in ours:
        assert issubclass(trainer, WholeCheckpoints)
        assert trainer.save_checkpoint is WholeCheckpoints.save_checkpoint


def status_of_writing(file: Path) -> int:
    """Write the second checkpoint, and print the error, as a command would."""
    try:
        write(file, 2)
    except FileError as error:
        print(error)
        return 2
    return 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("fault", [KILL, FULL])
def test_the_one_before_stays_until_the_next_is_whole(fault: int, tmp_path: Path):
    file, log = tmp_path / "checkpoint_latest.pth", tmp_path.with_name("log")

    for number in range(1, 50):
        write(file, 1)
        if (status := run_forked(lambda: status_of_writing(file), number, fault, tmp_path, log)) == 0:
            break
        assert load(file)["current_epoch"] in ((1, 2) if fault == KILL else (1,))
        assert fault == KILL or (status == 2 and str(file) in log.read_text())
    assert number > 2
    assert list(tmp_path.iterdir()) == [file], "nothing is left of those that were cut off"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limit on this system")
def test_a_quota_destroys_nothing_and_is_named(tmp_path: Path):
    import resource

    file, log = tmp_path / "checkpoint_latest.pth", tmp_path.with_name("log")
    write(file, 1)

    def command() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000))
        return status_of_writing(file)

    assert run_forked(command, 10**9, KILL, tmp_path, log) == 2
    assert "checkpoint_latest.pth could not be written" in log.read_text()
    assert "quota" in log.read_text()
    assert load(file)["current_epoch"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path):
    latest, best = tmp_path / "checkpoint_latest.pth", tmp_path / "checkpoint_best.pth"
    write(latest, 3)
    latest.write_bytes(latest.read_bytes()[:-1000])
    with pytest.raises(FileError, match=r"checkpoint_latest\.pth .*cut off.* train from scratch"):
        require_resumable(latest)
    write(best, 2)
    with pytest.raises(FileError, match=r"checkpoint_latest\.pth .*cut off.* continues from checkpoint_best\.pth"):
        require_resumable(latest)
    assert require_resumable(best)["current_epoch"] == 2
    torch.save({"network_weights": {}}, latest)
    with pytest.raises(FileError, match=r"checkpoint_latest\.pth .*lacks init_args, optimizer_state"):
        require_resumable(latest)


class Malicious:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_a_checkpoint_that_would_run_code_or_is_none_is_refused(tmp_path: Path):
    file, made = tmp_path / "crafted.pth", tmp_path / "made"
    torch.save(content(1) | {"extra": Malicious(made)}, file)
    with pytest.raises(FileError, match=r"crafted\.pth .*mkdir.*could run code"):
        load(file)
    assert not made.exists()
    torch.save(None, file)
    with pytest.raises(SourceError, match=r"crafted\.pth .*found NoneType"):
        load(file)
