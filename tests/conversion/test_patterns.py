"""Patterns of paths, and the usual places of files."""

import pytest

from nnunetv2_conemos.conversion.layouts.masks import PAIRS
from nnunetv2_conemos.conversion.layouts.places import assign, recognise
from nnunetv2_conemos.conversion.patterns import Pattern, ending_of, files_below
from nnunetv2_conemos.errors import InputError, MissingFileError


def test_places_of_a_pattern_are_read():
    pattern = Pattern("{patient}/{case}/masks/{label}.nii.gz")
    found = pattern.match("P1/scan 2/masks/Lunge li.nii.gz")
    assert found == {"patient": "P1", "case": "scan 2", "label": "Lunge li", "id": "P1_scan 2"}
    assert pattern.match("P1/scan/other/liver.nii.gz") is None


def test_the_longest_known_case_is_meant():
    pattern = Pattern("{case}_{label}.nii.gz")
    cases = {"pt", "pt_1", "pt_10"}
    assert [pattern.match(f"{name}.nii.gz", cases) for name in ("pt_1_Parotid_L", "pt_10_liver", "pt_liver")] == [
        {"case": "pt_1", "label": "Parotid_L", "id": "pt_1"},
        {"case": "pt_10", "label": "liver", "id": "pt_10"},
        {"case": "pt", "label": "liver", "id": "pt"},
    ]
    assert pattern.match("other_liver.nii.gz", cases) is None


def test_a_place_named_twice_is_the_same():
    pattern = Pattern("{case}/{case}_*.nii.gz")
    assert pattern.match("a/a_ct.nii.gz")
    assert pattern.match("a/b_ct.nii.gz") is None


@pytest.mark.parametrize("text", ["ct.nii.gz", "{case}/{organ}.nii.gz", "{}/ct.nii.gz"])
def test_patterns_that_name_no_case_or_unknown_places_are_refused(text):
    with pytest.raises(InputError, match="expected a path with"):
        Pattern(text)


def test_masks_beside_images_are_told_from_images():
    files = ["a.nii.gz", "a_1.nii.gz", "a_1_liver.nii.gz", "a_liver.nii.gz", "b.nii.gz"]
    found = assign([*files], [Pattern("{case}.nii.gz")], Pattern("{case}_{label}.nii.gz"))
    assert sorted(found.images) == ["a", "b"]
    assert [places["label"] for _, places in found.drawn["a"]] == ["1", "1_liver", "liver"]


LAYOUTS = {
    "TotalSegmentator": (["s1/ct.nii.gz", "s1/segmentations/liver.nii.gz", "s2/ct.nii.gz"], {"s1": ["liver"]}),
    "patients and visits": (["P/v1/ct.nii.gz", "P/v2/ct.nii.gz", "P/v1/masks/liver.nii.gz"], {"P_v1": ["liver"]}),
    "masks beside the image": (["s1/image.nrrd", "s1/liver.nrrd"], {"s1": ["liver"]}),
    "a folder per organ": (
        ["images/c1.nii.gz", "images/c2.nii.gz", "liver/c1.nii.gz", "spleen/c1.nii.gz"],
        {"c1": ["liver", "spleen"]},
    ),
    "a folder per organ in one": (["images/c1.mha", "masks/liver/c1.mha"], {"c1": ["liver"]}),
    "a folder per case": (["images/c1.mha", "masks/c1/liver.mha"], {"c1": ["liver"]}),
    "nnU-Net's images": (["imagesTr/c1_0000.nii.gz", "imagesTr/c1_0001.nii.gz", "masks/c1_l.nii.gz"], {"c1": ["l"]}),
    "flat, ct named": (["c1_ct.nii.gz", "c1_liver.nii.gz", "c2_ct.nii.gz"], {"c1": ["liver"]}),
    "flat, bare": (["c1.nii.gz", "c1_liver.nii.gz", "c2.nii.gz"], {"c1": ["liver"]}),
}


@pytest.mark.parametrize(("files", "labels"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_usual_places_of_masks_are_recognised(files, labels):
    found = recognise(files, PAIRS, "a mask", images_only=False)
    assert found.patterns is not None, found.words
    assigned = assign(files, [Pattern(found.patterns.images[0])], Pattern(found.patterns.masks))
    assert {case: [p["label"] for _, p in drawn] for case, drawn in assigned.drawn.items()} == labels
    assert not assigned.others


def test_what_is_not_recognised_says_what_fits_best():
    found = recognise(["s1/ct.nii.gz", "s1/masks/liver.nii.gz", "report/x/y/z.nii.gz"], PAIRS, "a mask", False)
    assert found.patterns is None
    assert "names 2 of 3 volumes, but not report/x/y/z.nii.gz" in found.words


def test_hidden_files_are_passed_over(tmp_path):
    (tmp_path / "a" / ".hidden").mkdir(parents=True)
    for name in ("a/x.nii.gz", "a/._x.nii.gz", "a/.hidden/y.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert files_below(tmp_path) == ["a/x.nii.gz"]
    assert ending_of("x.NII.gz") == ".nii.gz"
    with pytest.raises(MissingFileError, match="there is no folder"):
        files_below(tmp_path / "none")
