"""Check that a machine is ready to train: versions, nnU-Net's variables, and whether nnU-Net finds our trainers.

Whatever imports torchvision runs in a separate process: with a torch that it was not built for, that import can crash
the interpreter.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from nnunetv2_conemos.doorway import DOORWAY, PACKAGE, VARIABLE, doorway_folder
from nnunetv2_conemos.errors import Finding

SUPPORTED = ((2, 8, 1), (2, 9, 0))  # versions of nnU-Net: the lowest, and the first one above the range
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAINER = "ConditionalFiLMTrainer"
REMEDY = 'Run `eval "$(conemos env)"` in this shell (and in job scripts).'
IMPORT_TORCHVISION = "import torch, torchvision; torchvision.ops.nms"
FIND_TRAINER = f"""
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
print(recursive_find_trainer_class_by_name("{TRAINER}").__module__)
"""


@contextmanager
def variables(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables within the block; those of None stay as they are."""
    before = {name: os.environ.get(name) for name in values}
    os.environ |= {name: value for name, value in values.items() if value is not None}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def check_environment(environment: Mapping[str, str] | None = None) -> list[Finding]:
    """Check this machine and its environment variables (`os.environ`, unless others are given).

    nnU-Net's look-up of trainers is tried only where no other finding already means that it fails.
    """
    environment = os.environ if environment is None else environment
    findings = [*check_version(metadata.version("nnunetv2")), *check_torchvision(), *check_folders(environment)]
    findings += check_trainer_path(environment.get(VARIABLE, ""), doorway_folder())
    hindered = any(f.severity == "error" and f.where in ("torchvision", VARIABLE) for f in findings)
    return findings if hindered else findings + check_lookup()


def check_version(found: str) -> list[Finding]:
    """Check nnU-Net's version against the range that this package supports."""
    lowest, limit = SUPPORTED
    if lowest <= _numbers(found) < limit:
        return []
    wanted = f"nnunetv2>={'.'.join(map(str, lowest))},<{limit[0]}.{limit[1]}"
    what = f"expected {wanted}, which this package is written for, found version {found}."
    return [Finding("error", "nnunetv2", what, f"pip install '{wanted}'")]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("+")[0])[:3]))


def check_torchvision() -> list[Finding]:
    """Check that torchvision can be imported, as nnU-Net does to look up a trainer (by way of Primus and timm)."""
    torch = metadata.version("torch")
    remedy = f"Install the torchvision that was built for torch {torch}, from the index torch came from."
    status, output = _python(IMPORT_TORCHVISION)
    if status:
        what = (
            f"cannot be imported with torch {torch} ({_last_line(output)}). nnU-Net imports it when it looks for a "
            "trainer, so it will find no trainer of any plugin."
        )
        return [Finding("error", "torchvision", what, remedy)]
    required = [re.match(r"torch==([\w.]+)", line) for line in metadata.requires("torchvision") or []]
    built_for = next((match.group(1) for match in required if match), torch)
    if _numbers(built_for) == _numbers(torch):
        return []
    return [Finding("warning", "torchvision", f"was built for torch {built_for}, found torch {torch}.", remedy)]


def check_folders(environment: Mapping[str, str]) -> list[Finding]:
    """Check the three variables that tell nnU-Net where its data are."""
    findings = []
    for name in FOLDERS:
        value = environment.get(name)
        if not value:
            what = "is not set: nnU-Net does not know where its data are."
            findings.append(Finding("error", name, what, f"export {name}=/folder/for/{name}"))
        elif not Path(value).is_dir():
            severity = "error" if name == "nnUNet_raw" else "warning"  # nnU-Net creates the others
            findings.append(Finding(severity, name, f"names {value}, which is not a folder.", "Correct or create it."))
    return findings


def check_trainer_path(value: str, doorway: Path) -> list[Finding]:
    """Check that `nnUNet_extTrainer` names the doorway folder, and no folder that holds a whole package."""
    folders = [Path(folder).resolve() for folder in value.split(os.pathsep) if folder.strip()]
    if not folders:
        return [Finding("error", VARIABLE, "is not set: nnU-Net finds only its own trainers.", REMEDY)]
    findings = []
    for folder in folders:
        if not folder.is_dir():
            what = f"names {folder}, which is not a folder; nnU-Net skips it silently."
            findings.append(Finding("warning", VARIABLE, what, "Remove it."))
        elif folder == PACKAGE or any((folder / name).is_dir() for name in (PACKAGE.name, "nnunetv2", "torch")):
            what = (
                f"names {folder}, which is or holds a whole package: nnU-Net imports every file below it and then "
                "drops those modules, so that classes exist twice and cannot be pickled."
            )
            findings.append(Finding("error", VARIABLE, what, f"unset {VARIABLE}, then: {REMEDY}"))
    if doorway.resolve() not in folders:
        what = f"does not name {doorway}, the folder of {DOORWAY}; found {value}."
        findings.append(Finding("error", VARIABLE, what, REMEDY))
    return findings


def check_lookup() -> list[Finding]:
    """Check that nnU-Net itself finds a trainer of this package, as nnUNetv2_train does."""
    status, output = _python(FIND_TRAINER)
    if status:
        what = f"nnU-Net does not find it: {_last_line(output)}"
        return [Finding("error", TRAINER, what, "Install or repair what that line names, then check again.")]
    module = _last_line(output)
    if module.startswith(PACKAGE.name + "."):
        return []
    what = f"nnU-Net finds another class of this name, in {module}."
    return [Finding("error", TRAINER, what, f"Remove its folder from {VARIABLE}.")]


def _python(code: str) -> tuple[int, str]:
    """Run code in a separate Python process; return its exit status and output."""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
