"""Trees of several patients: which series are cases, whose structures are whose, and all problems said at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_worlds import CORONAL, box, save, slices, structure_set, uid, write_series, write_structures
from pydicom.uid import ImplicitVRLittleEndian

from nnunetv2_conemos.conversion.dicom_cases import as_file_name
from nnunetv2_conemos.conversion.found import FoundCase
from nnunetv2_conemos.conversion.layouts.rtstruct import RTStructLayout
from nnunetv2_conemos.errors import InputError, MissingFileError

VOXELS = np.zeros((4, 6, 7), dtype=np.int16)
LIVER = [("Liver", [("CLOSED_PLANAR", box(33))])]


def find(source: Path) -> list[FoundCase]:
    return RTStructLayout().find(source)


def problems(source: Path) -> str:
    with pytest.raises(InputError) as error:
        find(source)
    return str(error.value)


def test_patients_and_studies_in_one_tree(tmp_path):
    """Two patients, one with two series; structure sets lie elsewhere; files that are not DICOM are passed over."""
    first, second = slices(VOXELS, "Bär 1"), slices(VOXELS, "Bär 1", "later")
    for dataset in second:
        dataset.StudyDate, dataset.StudyInstanceUID = "20250101", uid("later study")
    other = slices(VOXELS, "Zoë")
    write_series(tmp_path / "x" / "b", second)
    write_series(tmp_path / "x" / "c", first)
    write_series(tmp_path / "y", other)
    (tmp_path / "y" / "notes.txt").write_text("DICM")
    write_structures(tmp_path / "rs" / "1.dcm", first, LIVER)
    write_structures(tmp_path / "rs" / "2.dcm", other, [("Heart", []), ("Liver", [])])
    cases = find(tmp_path)
    assert [(c.case, c.patient, [s.name for s in c.structures]) for c in cases] == [
        ("Bar_1_1", "Bär 1", ["Liver"]),
        ("Bar_1_2", "Bär 1", []),
        ("Zoe", "Zoë", ["Heart", "Liver"]),
    ]
    assert [case.origin for case in cases] == [tmp_path / "x" / "c", tmp_path / "x" / "b", tmp_path / "y"]
    assert [file.name for file in cases[0].images] == ["000_0.dcm", "007_1.dcm", "014_2.dcm", "021_3.dcm"]
    assert not any(case.notes for case in cases)


def test_names_of_patients_become_names_of_files():
    assert [as_file_name(name) for name in ("Groß^Jörg", "a/b\\c", "..", "", "日本", "x" * 300)] == [
        "Gro_Jorg", "a_b_c", "unknown", "unknown", "unknown", "x" * 192,
    ]  # fmt: skip


def test_localizers_and_single_images_are_passed_over_and_said(tmp_path):
    series = slices(VOXELS)
    scout = slices(VOXELS[:2], series="scout", orientation=CORONAL)
    for dataset in scout:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path / "ct", series)
    write_series(tmp_path / "scout", scout)
    write_series(tmp_path / "one", slices(VOXELS[:1], series="one"))
    (case,) = find(tmp_path)
    assert sorted(case.notes) == [
        "a series of 2 file(s) of the same patient is passed over: localizer (CT)",
        "a series of one slice of the same patient is passed over (CT)",
    ]


def test_a_patient_without_any_volume_is_a_problem(tmp_path):
    write_series(tmp_path / "ct", slices(VOXELS))
    write_series(tmp_path / "one", slices(VOXELS[:1], patient="P2"))
    assert "patient 'P2': expected a series of slices, found none" in problems(tmp_path)


def test_structures_on_a_single_slice_are_a_case(tmp_path):
    series = slices(VOXELS[:1])
    write_series(tmp_path, series)
    write_structures(tmp_path / "rs.dcm", series, LIVER)
    (case,) = find(tmp_path)
    assert [structure.name for structure in case.structures] == ["Liver"]


def test_a_structure_set_of_another_series_is_named_with_what_it_wants(tmp_path):
    write_series(tmp_path / "ct", slices(VOXELS))
    write_structures(tmp_path / "rs.dcm", slices(VOXELS, series="other"), LIVER)
    found = problems(tmp_path)
    assert f"patient 'P1', {tmp_path / 'rs.dcm'}: expected the series that it was drawn on" in found
    assert uid("P1", "other") in found
    assert "found no usable series with that UID. Add the series, or take this file away." in found


def test_a_structure_set_may_name_slices_or_the_frame_of_reference_only(tmp_path):
    series = slices(VOXELS)
    write_series(tmp_path / "ct", series)
    write_series(tmp_path / "ct2", slices(VOXELS, patient="P2"))
    by_slices = structure_set(series, LIVER)
    study = by_slices.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    study.RTReferencedSeriesSequence[0].SeriesInstanceUID = uid("renamed")
    save(by_slices, tmp_path / "1.dcm", ImplicitVRLittleEndian)
    by_frame = structure_set(series, [("Heart", [])])
    del by_frame.ReferencedFrameOfReferenceSequence
    save(by_frame, tmp_path / "2.dcm", ImplicitVRLittleEndian)
    cases = find(tmp_path)
    assert [structure.name for structure in cases[0].structures] == ["Liver", "Heart"]
    assert cases[0].notes == ("structures name no series; they were matched by the frame of reference alone",)
    write_series(tmp_path / "ct3", slices(VOXELS, series="again"))
    assert "Keep one of them" in problems(tmp_path)


def test_missing_slices_at_the_end_are_said_where_structures_name_them(tmp_path):
    series = slices(VOXELS)
    write_series(tmp_path, series[:3])
    write_structures(tmp_path / "rs.dcm", series, LIVER)
    (case,) = find(tmp_path)
    assert case.notes == ("1 of the 4 slices that structures refer to are not in the series",)


def test_another_frame_of_reference_and_another_patient_are_problems(tmp_path):
    series = slices(VOXELS)
    write_series(tmp_path, series)
    wrong = structure_set(series, [*LIVER, ("Heart", [])])
    wrong.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.2.3"
    save(wrong, tmp_path / "frame.dcm", ImplicitVRLittleEndian)
    wrong = structure_set(series, LIVER)
    wrong.PatientID = "P9"
    save(wrong, tmp_path / "patient.dcm", ImplicitVRLittleEndian)
    found = problems(tmp_path)
    assert "2 problem(s)" in found
    assert "frame.dcm: expected structures in the frame of reference of their series" in found
    assert "expected the patient of its series, 'P1', found 'P9'" in found


def test_a_structure_set_may_name_further_frames_of_reference(tmp_path):
    """Those of a registered series on which nothing is drawn."""
    series, other = slices(VOXELS), slices(VOXELS, patient="P1", series="PET")
    for dataset in other:
        dataset.FrameOfReferenceUID, dataset.SeriesNumber = "1.2.3", 2
    write_series(tmp_path / "ct", series)
    write_series(tmp_path / "pet", other)
    both = structure_set(series, LIVER)
    further = structure_set(other, LIVER).ReferencedFrameOfReferenceSequence[0]
    both.ReferencedFrameOfReferenceSequence.append(further)
    save(both, tmp_path / "rs.dcm", ImplicitVRLittleEndian)
    assert [len(case.structures) for case in find(tmp_path)] == [1, 0]


def test_a_series_without_patient_says_so(tmp_path):
    write_series(tmp_path, slices(VOXELS, patient=""))
    (case,) = find(tmp_path)
    assert (case.case, case.patient) == ("unknown", None)
    assert case.notes == ("its headers name no patient: cases of one patient cannot be kept together",)


def test_all_problems_are_said_at_once(tmp_path):
    """Twenty-five patients with a missing slice, a file that is cut off, and one number for two structures."""
    for number in range(25):
        series = slices(VOXELS, patient=f"Q{number}")
        del series[1]
        write_series(tmp_path / f"{number}", series)
    (tmp_path / "0" / "cut.dcm").write_bytes((tmp_path / "0" / "000_0.dcm").read_bytes()[:300])
    twice = structure_set(slices(VOXELS), [*LIVER, *LIVER])
    twice.StructureSetROISequence[1].ROINumber = 1
    save(twice, tmp_path / "twice.dcm", ImplicitVRLittleEndian)
    found = problems(tmp_path)
    assert found.startswith("27 problem(s):\n  ")
    assert "expected a number for each structure" in found
    assert "cut.dcm" in found
    assert found.count("\n  ") == 21
    assert found.endswith("and 7 more")


def test_one_series_of_two_patients_is_a_problem(tmp_path):
    write_series(tmp_path / "a", slices(VOXELS))
    copies = slices(VOXELS)
    for dataset in copies:
        dataset.PatientID = "P2"
    write_series(tmp_path / "b", copies)
    assert "expected one patient and study in series" in problems(tmp_path)


def test_no_dicom_at_all(tmp_path):
    assert "expected a DICOM series of an image, found none" in problems(tmp_path)
    with pytest.raises(MissingFileError, match="there is no folder"):
        find(tmp_path / "none")


@pytest.mark.slow
def test_a_thousand_cases_take_linear_time(tmp_path):
    """Ten times the patients, about ten times the time, on one core."""
    from time import process_time

    from nnunetv2_conemos.conversion.dicom_files import scan_files

    for number in range(1000):
        write_series(tmp_path / f"{number:04d}", slices(VOXELS[:2], patient=f"P{number}"))
    files = sorted(tmp_path.rglob("*.dcm"))
    scan_files(files[:20])
    times = []
    for count in (200, 2000):
        begin = process_time()
        scan_files(files[:count])
        times.append(process_time() - begin)
    assert times[1] < 20 * times[0]
    assert len(find(tmp_path)) == 1000
