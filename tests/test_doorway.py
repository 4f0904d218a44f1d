"""`conemos env`: which folder it names, what it keeps, and that a shell can read the line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nnunetv2_conemos import cli
from nnunetv2_conemos.doorway import DOORWAY, PACKAGE, doorway_folder, export_line, trainer_path


@pytest.fixture
def doorway(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a checkout" / "trainers"
    folder.mkdir(parents=True)
    (folder / DOORWAY).touch()
    return folder


def test_a_wheel_keeps_the_doorway_inside_and_a_checkout_beside_the_package(tmp_path: Path, doorway: Path):
    package = doorway.parent / "nnunetv2_conemos"
    assert doorway_folder(package) == doorway
    inside = package / "trainers"
    inside.mkdir(parents=True)
    (inside / DOORWAY).touch()
    assert doorway_folder(package) == inside


def test_a_broken_install_is_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="Install the package again"):
        doorway_folder(tmp_path / "nnunetv2_conemos")


def test_the_doorway_of_this_install_holds_nothing_but_the_doorway():
    modules = {path.name for path in doorway_folder().glob("*.py")}
    assert modules == {DOORWAY}
    assert doorway_folder() not in (PACKAGE, PACKAGE.parent)


@pytest.mark.parametrize("current", [None, "", os.pathsep])
def test_an_empty_variable_becomes_the_doorway_alone(doorway: Path, current: str | None):
    assert trainer_path(current, doorway) == str(doorway)


def test_other_folders_stay_and_nothing_stands_twice(doorway: Path):
    current = os.pathsep.join(["/their/trainers", str(doorway) + os.sep, "/more", "/their/trainers", str(doorway)])
    assert trainer_path(current, doorway) == os.pathsep.join([str(doorway), "/their/trainers", "/more"])


def test_a_shell_reads_the_line_back(doorway: Path):
    script = f'{export_line("/with space", doorway)}; printf %s "$nnUNet_extTrainer"'
    read = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert read == os.pathsep.join([str(doorway), "/with space"])


def test_the_command_prints_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/their/trainers")
    assert cli.main(["env"]) == 0
    assert capsys.readouterr().out == export_line("/their/trainers", doorway_folder()) + "\n"
