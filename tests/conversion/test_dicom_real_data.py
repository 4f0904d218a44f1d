"""Really partial head-and-neck labels (OpenKBP) as DICOM series with structure sets and segmentations, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK
from dicom_worlds import slices, write_series
from real import DATA, real_data

from nnunetv2_conemos.conversion.layouts.dicomseg import DicomSegLayout
from nnunetv2_conemos.conversion.layouts.rtstruct import RTStructLayout
from nnunetv2_conemos.conversion.writers import dicomseg, rtstruct
from nnunetv2_conemos.datasets.geometry import as_sitk

pytestmark = real_data

CASES = ("pt_1", "pt_103")
VARIED = (
    {},
    {"Brainstem": "HIRNSTAMM", "SpinalCord": "Spinal_Cord", "LeftParotid": "Parotis li.", "Larynx": "larynx "},
)


@pytest.mark.parametrize("name", ["rtstruct", "dicomseg"])
def test_openkbp_written_as_dicom_is_read_voxel_by_voxel(tmp_path, name):
    """Only what is annotated is written; the names vary; contours agree in every voxel too."""
    write, layout = {"rtstruct": (rtstruct.write, RTStructLayout()), "dicomseg": (dicomseg.write, DicomSegLayout())}[
        name
    ]
    folder = DATA / "OpenKBP"
    values = json.loads((folder / "dataset.json").read_text())["labels"]
    annotated = json.loads((folder / "annotated.json").read_text())
    for case, names in zip(CASES, VARIED, strict=True):
        image = SimpleITK.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
        turned = np.reshape(image.GetDirection(), (3, 3))
        voxels = SimpleITK.GetArrayFromImage(image).astype(np.int16)
        along = (*turned[:, 0], *turned[:, 1])
        series = slices(voxels, case, orientation=along, origin=image.GetOrigin(), spacing=image.GetSpacing())
        write_series(tmp_path / case, series)
        labels = {names.get(label, label): (values[label],) for label in annotated[case]}
        write(folder / "labelsTr" / f"{case}.nii.gz", tmp_path / case, labels, tmp_path / case / "result.dcm")
    for found, names in zip(layout.find(tmp_path), VARIED, strict=True):
        expected = SimpleITK.ReadImage(str(folder / "labelsTr" / f"{found.case}.nii.gz"))
        data = SimpleITK.GetArrayFromImage(expected)
        volume = layout.read_image(found)
        geometry = as_sitk(volume.data[0], volume.grid)
        assert np.allclose(geometry.GetOrigin(), expected.GetOrigin(), atol=1e-3)
        assert np.allclose(geometry.GetDirection(), expected.GetDirection(), atol=1e-6)
        assert len(found.structures) == len(annotated[found.case])
        drawn = list(layout.read_structures(found, found.structures, volume))
        for one, label in zip(drawn, annotated[found.case], strict=True):
            assert np.array_equal(one.mask, data == values[label]), (found.case, label)
            assert names.get(label, label).strip() in [structure.name for structure in found.structures]
