"""The Python API: every name is there, documented and typed, nothing heavy is imported early, and its page is true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import make_model
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from paths import ROOT
from phantoms import set_folders
from raw_worlds import write_nifti

import nnunetv2_conemos
from nnunetv2_conemos import cli
from nnunetv2_conemos.datasets.phantom import ORGANS, make_case
from nnunetv2_conemos.files import write_json

ORGAN_IDS = {organ: label for label, organ in enumerate(ORGANS, start=1)}
PAGE = ROOT / "docs" / "reference" / "python_api.md"
FUNCTIONS = [name for name in nnunetv2_conemos.__all__ if inspect.isfunction(getattr(nnunetv2_conemos, name))]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, nnunetv2_conemos; print({'torch', 'nnunetv2', 'pandas'} & sys.modules.keys() or 'light')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "light"


@pytest.mark.parametrize("name", nnunetv2_conemos.__all__)
def test_every_name_is_documented(name: str):
    assert len(inspect.getdoc(getattr(nnunetv2_conemos, name)) or "") > 30


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_typed_and_on_the_page_of_the_api(name: str):
    signature = inspect.signature(getattr(nnunetv2_conemos, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    assert f"`{name}`" in PAGE.read_text()


def test_every_command_is_on_the_page_of_the_api():
    named = set(re.findall(r"`conemos (\w+)", PAGE.read_text()))
    assert named == set(cli.COMMANDS)


def write_dataset(folder: Path, organ: str, rng: np.random.Generator) -> None:
    """A raw dataset of six phantoms that annotates one organ."""
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    for number in range(6):
        image, truth = make_case(rng, (16, 32, 32))
        write_nifti(folder / "imagesTr" / f"case_{number}_0000.nii.gz", image)
        write_nifti(folder / "labelsTr" / f"case_{number}.nii.gz", (truth == ORGAN_IDS[organ]).astype(np.uint8))
    labels = {"background": 0, organ: 1}
    write_json(
        folder / "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 6, "file_ending": ".nii.gz"},
    )


@pytest.fixture
def two_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two datasets of the page, images to predict and their label maps, in the current folder."""
    base, rng = set_folders(tmp_path, monkeypatch), np.random.default_rng(0)
    monkeypatch.chdir(base)
    write_dataset(base / "nnUNet_raw" / "Dataset003_Liver", "liver", rng)
    write_dataset(base / "nnUNet_raw" / "Dataset009_Spleen", "spleen", rng)
    for folder in ("images", "labels"):
        (base / folder).mkdir()
    for number in range(2):
        image, truth = make_case(rng, (16, 32, 32))
        write_nifti(base / "images" / f"test_{number:02d}_0000.nii.gz", image)
        write_nifti(base / "labels" / f"test_{number:02d}.nii.gz", np.where(truth <= 2, truth, 0).astype(np.uint8))
    return base


def test_the_snippets_of_the_page_run(two_datasets: Path, capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, str(PAGE), "exec"), names)
        if "table" in names and "model" not in names:
            assert names["table"].labels.names == ("liver", "spleen")
            assert names["table"].annotated("Liver_case_0") == ("liver",)
            assert names["table"].counts().tolist() == [[6, 0], [0, 6]]
            plan_and_preprocess(500)
            make_model(two_datasets, dataset="Dataset500_Abdomen").rename(two_datasets / model_on_the_page())
    assert names["completed"].filled_in == {"liver": 6, "spleen": 6}
    assert (two_datasets / "stock_spleen" / "fold_0" / "checkpoint_final.pth").is_file()
    assert set(names["evaluation"].scores["label"]) == {"spleen"}
    assert len(names["evaluation"].scores) == 2


def plan_and_preprocess(number: int) -> None:
    """What the page leaves to nnU-Net's command."""
    extract_fingerprints([number], num_processes=1, show_progress_bar=False)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # the planner wants at least one
        plans_identifier = plan_experiments([number])
    preprocess([number], plans_identifier, ("3d_fullres",), (1,), show_progress_bar=False)


def model_on_the_page() -> str:
    (path,) = re.findall(r'model = Path\("([^"]+)"\)', PAGE.read_text())
    return path
