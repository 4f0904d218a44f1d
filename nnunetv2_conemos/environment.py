"""Is the machine ready to train: versions, nnU-Net's variables, and whether nnU-Net finds our trainers.

Whatever imports torchvision runs in a process of its own: where torch and torchvision do not fit together, that import
fails in ways that can take the interpreter with it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from nnunetv2_conemos.doorway import DOORWAY, PACKAGE, VARIABLE, doorway_folder
from nnunetv2_conemos.errors import Finding

SUPPORTED = ((2, 8, 1), (2, 9, 0))  # nnU-Net: from, up to but without
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
TRAINER = "ConditionalFiLMTrainer"
REMEDY = 'Run `eval "$(conemos env)"` in this shell (and in job scripts).'
IMPORT_TORCHVISION = "import torch, torchvision; torchvision.ops.nms"
FIND_TRAINER = f"""
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
print(recursive_find_trainer_class_by_name("{TRAINER}").__module__)
"""


def check_environment(environment: Mapping[str, str]) -> list[Finding]:
    """All findings about the machine; the trainer look-up is tried only where nothing else forbids it."""
    findings = [*check_version(metadata.version("nnunetv2")), *check_torchvision(), *check_folders(environment)]
    findings += check_trainer_path(environment.get(VARIABLE, ""), doorway_folder())
    hindered = any(f.severity == "error" and f.where in ("torchvision", VARIABLE) for f in findings)
    return findings if hindered else findings + check_lookup()


def check_version(found: str) -> list[Finding]:
    """nnU-Net's version against the range this package was written for."""
    lowest, limit = SUPPORTED
    if lowest <= _numbers(found) < limit:
        return []
    wanted = f"nnunetv2>={'.'.join(map(str, lowest))},<{limit[0]}.{limit[1]}"
    what = f"version {found} is installed, this package builds on {wanted}."
    return [Finding("error", "nnunetv2", what, f"pip install '{wanted}'")]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("+")[0])[:3]))


def check_torchvision() -> list[Finding]:
    """nnU-Net imports all of its own trainers before it looks for others: Primus -> timm -> torchvision among them."""
    torch = metadata.version("torch")
    remedy = f"Install the torchvision that was built for torch {torch}, from the index torch came from."
    status, output = _python(IMPORT_TORCHVISION)
    if status:
        what = (
            f"cannot be imported beside torch {torch} ({_last_line(output)}). nnU-Net imports it while it looks for a "
            "trainer, so it will find no trainer of any plugin."
        )
        return [Finding("error", "torchvision", what, remedy)]
    required = [re.match(r"torch==([\w.]+)", line) for line in metadata.requires("torchvision") or []]
    built_for = next((match.group(1) for match in required if match), torch)
    if _numbers(built_for) == _numbers(torch):
        return []
    return [Finding("warning", "torchvision", f"was built for torch {built_for}, found torch {torch}.", remedy)]


def check_folders(environment: Mapping[str, str]) -> list[Finding]:
    """The three variables that tell nnU-Net where its data lie."""
    findings = []
    for name in FOLDERS:
        value = environment.get(name)
        if not value:
            what = "is not set: nnU-Net does not know where its data are."
            findings.append(Finding("error", name, what, f"export {name}=/folder/for/{name}"))
        elif not Path(value).is_dir():
            severity = "error" if name == "nnUNet_raw" else "warning"  # nnU-Net creates the others
            findings.append(Finding(severity, name, f"names {value}, which is no folder.", "Correct or create it."))
    return findings


def check_trainer_path(value: str, doorway: Path) -> list[Finding]:
    """`nnUNet_extTrainer` must name the doorway folder, and no folder that holds a whole package."""
    folders = [Path(folder).resolve() for folder in value.split(os.pathsep) if folder.strip()]
    if not folders:
        return [Finding("error", VARIABLE, "is not set: nnU-Net finds only its own trainers.", REMEDY)]
    findings = []
    for folder in folders:
        if not folder.is_dir():
            what = f"names {folder}, which is no folder; nnU-Net skips it without a word."
            findings.append(Finding("warning", VARIABLE, what, "Remove it."))
        elif folder == PACKAGE or any((folder / name).is_dir() for name in (PACKAGE.name, "nnunetv2", "torch")):
            what = (
                f"names {folder}, which is or holds a whole package: nnU-Net imports every file below it and forgets "
                "them again, so that classes exist twice and cannot be pickled."
            )
            findings.append(Finding("error", VARIABLE, what, f"unset {VARIABLE}, then: {REMEDY}"))
    if doorway.resolve() not in folders:
        what = f"does not name {doorway}, the folder of {DOORWAY}; found {value}."
        findings.append(Finding("error", VARIABLE, what, REMEDY))
    return findings


def check_lookup() -> list[Finding]:
    """Let nnU-Net itself look for the trainer, as nnUNetv2_train does."""
    status, output = _python(FIND_TRAINER)
    if status:
        what = f"nnU-Net does not find it: {_last_line(output)}"
        return [Finding("error", TRAINER, what, "Install what is missing or broken there, then check again.")]
    module = _last_line(output)
    if module.startswith(PACKAGE.name + "."):
        return []
    what = f"nnU-Net finds another class of that name, in {module}."
    return [Finding("error", TRAINER, what, f"Remove its folder from {VARIABLE}.")]


def _python(code: str) -> tuple[int, str]:
    """Exit status and output of a Python process."""
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
