"""A trained model folder, for all tests of what is done with one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from paths import ROOT
from phantoms import PHANTOM

OLD_LAYOUT = ROOT / "tests" / "data" / "old_layout"


@pytest.fixture
def model(preprocessed_phantom: Path) -> Path:
    """A model of ConditionalFiLMTrainer that knows the organs of the phantom, in nnUNet_results."""
    folder = preprocessed_phantom / "nnUNet_results" / PHANTOM / "ConditionalFiLMTrainer__nnUNetPlans__tiny"
    shutil.copytree(OLD_LAYOUT / "model", folder)
    return folder


@pytest.fixture
def images(preprocessed_phantom: Path) -> Path:
    """The folder of the phantom's test images."""
    return preprocessed_phantom / "nnUNet_raw" / PHANTOM / "imagesTs"
