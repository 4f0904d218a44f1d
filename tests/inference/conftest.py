"""A trained model folder, for all tests of what is done with one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from models import make_model
from phantoms import PHANTOM, set_folders


@pytest.fixture(scope="session")
def _trained(_preprocessed_template, tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("trained")
    shutil.copytree(_preprocessed_template, base, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_folders(base, monkeypatch)
        make_model(base, steps=300)
    return base / "nnUNet_results"


@pytest.fixture
def model(_trained, preprocessed_phantom) -> Path:
    shutil.copytree(_trained, preprocessed_phantom / "nnUNet_results", dirs_exist_ok=True)
    return preprocessed_phantom / "nnUNet_results" / PHANTOM / "ConditionalFiLMTrainer__nnUNetPlans__tiny"


@pytest.fixture
def images(preprocessed_phantom) -> Path:
    return preprocessed_phantom / "nnUNet_raw" / PHANTOM / "imagesTs"
