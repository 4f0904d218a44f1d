"""Valid datasets, models and tables to begin with: small, written from nothing, the same each time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from paths import ROOT
from phantoms import PHANTOM
from raw_worlds import stripes, write_nifti, write_raw

FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
ABDOMEN, KIDNEY, REGIONS = "Dataset701_Abdomen", "Dataset702_Kidney", "Dataset703_Regions"
OTHER_ENDINGS = {".nrrd": "Dataset704_Nrrd", ".mha": "Dataset705_Mha", ".nii": "Dataset706_Nii"}
PICTURES = {".png": "Dataset707_Png", ".tif": "Dataset708_Tif"}
FOREIGN = "Dataset791_Foreign"  # a folder that is called like a dataset and holds something else
BEST, TAGGED = "Dataset005_Organs", "Dataset902_Tagged"


def use(base: Path) -> None:
    """Point nnU-Net's variables below `base`."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(base / name)


def write_light(base: Path) -> None:
    """Raw datasets of all kinds and endings, evaluations and tables, in milliseconds."""
    use(base)
    raw = base / "nnUNet_raw"
    _abdomen(raw / ABDOMEN)
    labels = {"background": 0, "kidney": 1, "spleen": 2}
    write_raw(raw / KIDNEY, labels, {f"k{i}": stripes(0, 1, 2) for i in range(5)})
    regions = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    write_raw(raw / REGIONS, regions, {f"r{i}": stripes(0, 1, 2, 3) for i in range(5)}, regions_class_order=[1, 2])
    shutil.copytree(raw / KIDNEY / "labelsTr", base / "nnUNet_preprocessed" / KIDNEY / "gt_segmentations")
    shutil.copy(raw / KIDNEY / "dataset.json", base / "nnUNet_preprocessed" / KIDNEY)
    for ending, name in OTHER_ENDINGS.items():
        if ending == ".nii":
            _nii(raw / name)
        else:
            write_raw(
                raw / name, {"background": 0, "liver": 1}, {f"x{i}": stripes(0, 1) for i in range(5)}, ("CT",), ending
            )
    for ending, name in PICTURES.items():
        _pictures(raw / name, ending)
    (base / "nnUNet_raw" / FOREIGN).mkdir()
    (base / "nnUNet_raw" / FOREIGN / "thesis.txt").write_text("ten years of work\n")
    _predictions(base)
    tables = base / "tables"
    tables.mkdir()
    table = {f"k{i}": ["kidney"] if i < 3 else ["spleen"] for i in range(5)}
    (tables / "kidney.json").write_text(json.dumps(table, indent=1))
    rows = ["case,labels,modality,domain", *(f"{case},{';'.join(names)},CT,home" for case, names in table.items())]
    (tables / "kidney.csv").write_text("\n".join(rows) + "\n")
    (tables / "groups.json").write_text(json.dumps({"one": ["kidney"], "two": ["spleen"]}))
    shutil.copytree(ROOT / "tests" / "data" / "old_layout" / "model", base / "model")
    for file in (ROOT / "tests" / "attack" / "corpus").glob("*.yaml"):
        shutil.copy(file, tables)


def _abdomen(folder: Path) -> None:
    """Partly annotated cases in three sources, one of them known by tags only."""
    maps = {f"a{i}": stripes(0, 1) if i < 3 else stripes(0, 0, 2) for i in range(6)} | {"t0": stripes(0)}
    sources = {
        "A": {"cases": ["a0", "a1", "a2"], "annotated": ["liver"], "modality": "CT", "domain": "here"},
        "B": {"cases": ["a3", "a4", "a5"], "annotated": ["spleen"], "modality": "CT", "domain": "there", "weight": 2},
        "T": {"cases": ["t*"], "annotated": [], "tagged": ["liver"]},
    }
    tags = {"axis": "z", "cases": {"t0": {"liver": [0, 1]}}}
    write_raw(folder, {"background": 0, "liver": 1, "spleen": 2}, maps, sources=sources, tags=tags)


def _nii(folder: Path) -> None:
    """Write the same by nibabel, as .nii, which SimpleITKIO does not read."""
    write_raw(folder, {"background": 0, "liver": 1}, {f"x{i}": stripes(0, 1) for i in range(5)})
    for file in sorted(folder.rglob("*.nii.gz")):
        image = nibabel.load(file)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine), str(file)[: -len(".gz")])
        file.unlink()
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii"}))


def _pictures(folder: Path, ending: str) -> None:
    """Write grey pictures in 2D."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for i in range(5):
        image, label = np.full((8, 9), 10 + i, np.uint8), np.repeat([[0], [1]], 4, 0) * np.ones((1, 9), np.uint8)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(image), str(folder / "imagesTr" / f"p{i}_0000{ending}"))
        SimpleITK.WriteImage(
            SimpleITK.GetImageFromArray(label.astype(np.uint8)), str(folder / "labelsTr" / f"p{i}{ending}")
        )
    content = {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "thing": 1},
        "numTraining": 5,
        "file_ending": ending,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def _predictions(base: Path) -> None:
    """Predictions for two evaluations, as nnU-Net leaves them."""
    truth = base / "nnUNet_raw" / KIDNEY / "labelsTr"
    for name, rows in (("one", (0, 1, 2)), ("two", (0, 1, 1, 2))):
        folder = base / "predictions" / name
        folder.mkdir(parents=True)
        for file in truth.iterdir():
            write_nifti(folder / file.name, stripes(*rows))
        shutil.copy(truth.parent / "dataset.json", folder)


def write_full(base: Path) -> None:
    """Write the light datasets, a preprocessed phantom with two models, and validated models to rank; half a minute."""
    from models import make_model

    from nnunetv2_conemos.evaluation.evaluate import evaluate

    write_light(base)
    preprocess_phantom(base)
    plans = json.loads((make_model(base) / "plans.json").read_text())
    file = base / "nnUNet_preprocessed" / PHANTOM / "nnUNetPlans.json"
    planned = json.loads(file.read_text())
    planned["configurations"]["tiny"] = plans["configurations"]["tiny"]
    file.write_text(json.dumps(planned))
    _tagged_model(base)
    _models_to_rank(base)
    for name in ("one", "two"):
        evaluate(
            base / "nnUNet_raw" / KIDNEY / "labelsTr", base / "predictions" / name, complete=True, output=base / name
        )


def preprocess_phantom(base: Path) -> None:
    """Plan and preprocess the phantom of the tests, 2d and 3d_fullres."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from phantoms import write_declared_phantom
    from pools import pools_of_threads

    write_declared_phantom(base)
    with pytest.MonkeyPatch.context() as monkeypatch:
        pools_of_threads(monkeypatch)
        extract_fingerprints([901], num_processes=1, show_progress_bar=False)
        plans = plan_experiments([901])
        preprocess([901], plans, ("2d", "3d_fullres"), (1, 1), show_progress_bar=False)
    folder = base / "nnUNet_preprocessed" / PHANTOM
    cases = sorted(file.name.removesuffix(".nii.gz") for file in (folder / "gt_segmentations").iterdir())
    folds = [{"train": [c for c in cases if c not in cases[i::3]], "val": cases[i::3]} for i in range(3)]
    (folder / "splits_final.json").write_text(json.dumps(folds))


def _tagged_model(base: Path) -> None:
    """A copy of the phantom with image tags, and an untrained model of CMERTrainer on it."""
    from nnunetv2_conemos.datasets.plans import add_slices_configuration
    from nnunetv2_conemos.methods import CMERTrainer

    raw, done = (base / part / TAGGED for part in FOLDERS[:2])
    shutil.copytree(raw.with_name(PHANTOM), raw)
    shutil.copytree(done.with_name(PHANTOM), done)
    content = json.loads((raw / "dataset.json").read_text())
    content["sources"]["site_a"] |= {"annotated": [], "tagged": ["liver"]}
    cases = sorted(file.name[:-12] for file in (raw / "imagesTr").glob("site_a_*"))
    content["tags"] = {"axis": "z", "cases": {case: {"liver": [4, 5, 6, 7]} for case in cases}}
    for folder in (raw, done):
        (folder / "dataset.json").write_text(json.dumps(content))
    file = done / "nnUNetPlans.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dataset_name": TAGGED}))
    add_slices_configuration(TAGGED, batch=4, name="whole")
    plans = json.loads(file.read_text())
    plans["configurations"]["whole"]["conemos"] = {"width_divisor": 16}
    file.write_text(json.dumps(plans))
    trainer = CMERTrainer(plans | {"continue_training": False}, "whole", 0, content, torch.device("cpu"))
    trainer.initialize()
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(content))
    trainer.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))


def _models_to_rank(base: Path) -> None:
    """Two trained models as far as `conemos best` looks at them: maps and summaries of two folds."""
    labels = {"background": 0, "liver": 1, "spleen": 2}
    maps = {f"b{i}": stripes(0, 1, 2) for i in range(4)}
    raw = write_raw(base / "nnUNet_raw" / BEST, labels, maps)
    plans = {
        "dataset_name": BEST,
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": {"architecture": {}}},
    }
    done = base / "nnUNet_preprocessed" / BEST
    shutil.copytree(raw / "labelsTr", done / "gt_segmentations")
    shutil.copy(raw / "dataset.json", done)
    (done / "nnUNetPlans.json").write_text(json.dumps(plans))
    for trainer, rows in (("ConditionalFiLMTrainer", (0, 1, 2)), ("nnUNetTrainer", (0, 1, 1, 2))):
        model = base / "nnUNet_results" / BEST / f"{trainer}__nnUNetPlans__3d_fullres"
        for fold in (0, 1):
            validation = model / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            for case in (f"b{2 * fold}", f"b{2 * fold + 1}"):
                write_nifti(validation / f"{case}.nii.gz", stripes(*rows))
            (validation / "summary.json").write_text("{}")
            (validation.parent / "checkpoint_final.pth").touch()
        (model / "plans.json").write_text(json.dumps(plans))
        shutil.copy(raw / "dataset.json", model)
