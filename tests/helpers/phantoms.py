"""A tiny phantom dataset in nnU-Net's folders."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from nnunetv2_conemos.datasets.phantom import write_phantom
from nnunetv2_conemos.files import write_json

PHANTOM = "Dataset901_Phantom"
SOURCES = {"site_a": ["liver"], "site_b": ["spleen", "gallbladder"], "site_c": ["stomach"]}
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def set_folders(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point nnU-Net's variables below `base`; nnU-Net reads them at each use."""
    for name in FOLDERS:
        (base / name).mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(base / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    return base


@cache
def _template() -> TemporaryDirectory:
    """Write the raw phantom dataset once, its three sources in dataset.json; it is deleted when the tests end."""
    template = TemporaryDirectory()
    folder = Path(template.name) / PHANTOM
    write_phantom(folder, cases_per_source=3, test_cases=2, shape=(16, 32, 32), sources=SOURCES, seed=1)
    dataset_json = json.loads((folder / "dataset.json").read_text())
    sources = {name: {"cases": [f"{name}_*"], "annotated": organs} for name, organs in SOURCES.items()}
    write_json(folder / "dataset.json", dataset_json | {"sources": sources})
    return template


def write_declared_phantom(base: Path) -> Path:
    """Copy the raw phantom dataset below `base`; returns its folder."""
    return Path(shutil.copytree(Path(_template().name) / PHANTOM, base / "nnUNet_raw" / PHANTOM))
