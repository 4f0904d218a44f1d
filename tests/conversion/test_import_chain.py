"""From the clinic and back by the real commands: import, check, plan, train, predict, convert."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_worlds import write_image_as_series
from programs import command
from raw_worlds import read_nifti
from real import DATA, real_data

from nnunetv2_conemos.conversion.layouts.rtstruct import RTStructLayout
from nnunetv2_conemos.conversion.writers import rtstruct
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.text_files import read_object

pytestmark = [*real_data, pytest.mark.slow]
OPENKBP = DATA / "OpenKBP"
NAME, TRAINER, TINY = "Dataset910_Clinic", "ConditionalFiLMTrainer_Adam1en3_NoMirroring_5epochs", "tiny"
TRAINING, NEW = 10, 2  # patients


def write_clinic(folder: Path, patients: Sequence[str]) -> Path:
    """Patients as series with structure sets of what is annotated, every other one with German names in capitals."""
    values, annotated = (read_object(OPENKBP / "dataset.json")["labels"], read_object(OPENKBP / "annotated.json"))
    for number, patient in enumerate(patients):
        series = write_image_as_series(OPENKBP / "imagesTr" / f"{patient}_0000.nii.gz", folder / patient)
        names = {"Brainstem": "HIRNSTAMM", "Larynx": "KEHLKOPF"} if number % 2 else {}
        labels = {names.get(label, label): (values[label],) for label in annotated[patient]}
        rtstruct.write(OPENKBP / "labelsTr" / f"{patient}.nii.gz", series, labels, folder / patient / "RS.dcm")
    return folder


def write_labels(file: Path, names: Sequence[str]) -> Path:
    also = {"Brainstem": "Hirnstamm", "Larynx": "Kehlkopf"}
    write_json(file, {name: [name, *([also[name]] if name in also else [])] for name in names})  # JSON is YAML, too
    return file


def test_structure_sets_become_a_model_whose_predictions_are_structure_sets(nnunet_folders, tmp_path):
    patients = sorted(read_object(OPENKBP / "annotated.json"))
    training, new = patients[:TRAINING], patients[TRAINING : TRAINING + NEW]
    values = {name: value for name, value in read_object(OPENKBP / "dataset.json")["labels"].items() if value}
    table = write_labels(tmp_path / "labels.yaml", list(values))
    clinic = write_clinic(tmp_path / "pacs", training)
    command("conemos", "import", clinic, "-o", NAME, "--labels", table, "-np", 2)
    raw = nnunet_folders / "nnUNet_raw" / NAME
    for patient in training:
        theirs, ours = (read_nifti(f / "labelsTr" / f"{patient}.nii.gz") for f in (OPENKBP, raw))
        assert np.array_equal(theirs, ours), patient
    command("conemos", "check", NAME, "-np", 1)
    command("nnUNetv2_plan_and_preprocess", "-d", 910, "-c", "2d", "-npfp", 1, "-np", 1)
    file = nnunet_folders / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = read_object(file)
    plans["configurations"][TINY] = small_configuration(plans, "2d", features=8, patch=(112, 112), batch=4)
    write_json(file, plans)
    command("nnUNetv2_train", 910, TINY, "all", "-tr", TRAINER, "-device", "cpu")

    for patient in new:
        write_image_as_series(OPENKBP / "imagesTr" / f"{patient}_0000.nii.gz", tmp_path / "new" / patient)
    images, predictions, back = (tmp_path / name for name in ("images", "predictions", "back"))
    command("conemos", "import", tmp_path / "new", "-o", images, "--images-only", "-np", 1)
    predicted = ("nnUNetv2_predict", "-i", images, "-o", predictions, "-d", 910, "-c", TINY, "-tr", TRAINER)
    command(*predicted, "-f", "all", "-device", "cpu", "-npp", 1, "-nps", 1, "--disable_tta")
    origins = ("--origins", images / "origins.csv")
    command("conemos", "convert", predictions, "-o", back, "--as", "rtstruct", *origins, "-np", 1)

    labels = json.loads((raw / "dataset.json").read_text())["labels"]
    for patient in new:
        shutil.copytree(tmp_path / "new" / patient, back / patient / "series")
    layout, drawn_at_all = RTStructLayout(), 0
    for patient in new:
        (found,) = layout.find(back / patient)
        volume, voxels = layout.read_image(found), read_nifti(predictions / f"{patient}.nii.gz")
        structures = list(layout.read_structures(found, found.structures, volume))
        assert {structure.name for structure in found.structures} == set(values)
        for structure, drawn in zip(found.structures, structures, strict=True):
            assert np.array_equal(drawn.mask, voxels == labels[structure.name]), (patient, structure.name)
            drawn_at_all += int(drawn.mask.any())
    assert drawn_at_all, "some organ was found"
