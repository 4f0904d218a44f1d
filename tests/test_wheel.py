"""The wheel: what is in it, and (slow) that it works in an environment of its own."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from paths import ROOT

import nnunetv2_conemos
from nnunetv2_conemos.doorway import DOORWAY, VARIABLE

PACKAGE = ROOT / "nnunetv2_conemos"
FIND_TRAINER = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
trainer = recursive_find_trainer_class_by_name("ConditionalFiLMTrainer_5epochs")
print(trainer.__module__, trainer.__name__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def dist_info(wheel: Path, file: str) -> str:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(f".dist-info/{file}"))
    return archive.read(name).decode()


def test_the_wheel_holds_every_module_and_the_doorway(names: list[str]):
    modules = {file.relative_to(ROOT).as_posix() for file in PACKAGE.rglob("*.py")}
    assert modules | {f"nnunetv2_conemos/trainers/{DOORWAY}"} == {name for name in names if name.endswith(".py")}


def test_the_wheel_holds_nothing_but_code_types_templates_tables_and_metadata(names: list[str]):
    others = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    expected = [
        *PACKAGE.rglob("templates/*.j2"),
        *PACKAGE.rglob("*.yaml"),
        PACKAGE / "__init__.pyi",
        PACKAGE / "py.typed",
    ]
    assert others == {file.relative_to(ROOT).as_posix() for file in expected}, (
        "tests, data or caches have no place in the wheel"
    )


def test_the_licence_travels_with_the_wheel(wheel: Path):
    assert dist_info(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_metadata(wheel: Path):
    metadata = email.message_from_string(dist_info(wheel, "METADATA"))
    assert metadata["Name"] == "nnunetv2-conemos"
    assert metadata["Version"] == nnunetv2_conemos.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata.get_payload() == (ROOT / "README.md").read_text()
    required = metadata.get_all("Requires-Dist", [])
    assert "nnunetv2<2.9,>=2.8.1" in required
    assert "conemos = nnunetv2_conemos.cli:main" in dist_info(wheel, "entry_points.txt")


def test_citation_and_changelog_name_the_version():
    assert f"version: {nnunetv2_conemos.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert nnunetv2_conemos.__version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment_from_any_folder(wheel: Path, tmp_path: Path):
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {name: value for name, value in os.environ.items() if name not in (VARIABLE, "PYTHONPATH", "VIRTUAL_ENV")}
    clean["PATH"] = os.pathsep.join([str(venv / "bin"), clean["PATH"]])
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        clean[name] = str(elsewhere)

    def run(*command: str | Path) -> str:
        return output_of(command, elsewhere, clean)

    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", wheel)
    run(venv / "bin" / "python", "-m", "pip", "check")
    doorway = run("bash", "-c", f'eval "$(conemos env)" && echo "${VARIABLE}"').strip()
    assert Path(doorway).is_relative_to(venv), doorway
    clean[VARIABLE] = doorway
    found = run(venv / "bin" / "python", "-c", FIND_TRAINER)
    assert found.splitlines()[-1] == "nnunetv2_conemos.methods.conemos ConditionalFiLMTrainer_5epochs"
    assert "usage: conemos check" in run("conemos", "check", "--help")
    assert "0 error(s), 0 warning(s)" in run("conemos", "check")


def output_of(command: Sequence[str | Path], folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
