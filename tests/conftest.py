"""Shared fixtures: nnU-Net's folders in a temporary place, and a tiny phantom dataset in them.

`nnunet_folders`       empty nnUNet_raw / nnUNet_preprocessed / nnUNet_results, set in the environment of one test
`phantom`              the same, with a raw phantom dataset (9 cases, 3 sources, 2 test cases, 16x32x32) and `sources`
`preprocessed_phantom` the same, planned and preprocessed (2d and 3d_fullres); built once, copied for each test
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from phantoms import set_folders, write_declared_phantom
from pools import pools_of_threads

settings.register_profile("conemos", deadline=None)  # a busy machine is no failure
settings.load_profile("conemos")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest test, so that no process waits for another one at the end."""
    items.sort(key=lambda item: "test_end_to_end" not in item.nodeid)


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    """Seed every generator; one thread, whatever nnU-Net asked for in an earlier test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def nnunet_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that holds the three nnU-Net folders."""
    return set_folders(tmp_path, monkeypatch)


@pytest.fixture
def phantom(nnunet_folders: Path) -> Path:
    """Raw folder of the phantom dataset."""
    return write_declared_phantom(nnunet_folders)


@pytest.fixture(scope="session")
def _preprocessed_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    base = tmp_path_factory.mktemp("preprocessed_phantom")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_folders(base, monkeypatch)
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # the planner wants at least one
        pools_of_threads(monkeypatch)
        write_declared_phantom(base)
        extract_fingerprints([901], num_processes=1, show_progress_bar=False)
        plans_identifier = plan_experiments([901])
        preprocess([901], plans_identifier, ("2d", "3d_fullres"), (1, 1), show_progress_bar=False)
    return base


@pytest.fixture
def preprocessed_phantom(_preprocessed_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder that holds the three nnU-Net folders, with `Dataset901_Phantom` raw and preprocessed."""
    shutil.copytree(_preprocessed_template, tmp_path, dirs_exist_ok=True)
    return set_folders(tmp_path, monkeypatch)
