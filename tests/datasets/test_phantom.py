"""The phantom: reproducible, partial where it says so, and not trivial."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnunetv2_conemos.datasets.phantom import ORGANS, make_case, write_phantom

SHAPE = (24, 40, 40)


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [make_case(rng, SHAPE) for _ in range(6)]


def test_every_case_holds_all_organs_and_looks_like_ct(cases):
    for image, truth in cases:
        assert image.shape == truth.shape == SHAPE
        assert image.dtype == np.float32
        assert set(np.unique(truth)) == {0, 1, 2, 3, 4}
        assert image.min() >= -1000
        assert image.max() > 200
        assert min(np.bincount(truth.ravel())) > 50


def test_organs_touch(cases):
    """Liver and stomach, spleen and stomach, liver and gallbladder share borders in most cases."""
    for first, second in ((1, 3), (2, 3), (1, 4)):
        touching = 0
        for _, truth in cases:
            neighbours = [(m[:-1], m[1:]) for m in (truth.swapaxes(0, axis) for axis in range(3))]
            touching += any(
                (((a == first) & (b == second)) | ((a == second) & (b == first))).any() for a, b in neighbours
            )
        assert touching >= len(cases) - 2, (first, second)


def test_density_alone_does_not_tell_the_organs_apart(cases):
    """Liver and spleen overlap in every case; the stomach and the gallbladder are darker."""
    for image, truth in cases:
        liver, spleen, stomach, gallbladder = (
            np.percentile(image[truth == label], (10, 50, 90)) for label in range(1, 5)
        )
        assert spleen[2] > liver[0]
        assert liver[2] > spleen[0]
        assert gallbladder[1] < stomach[1] < min(liver[1], spleen[1])


def test_no_two_cases_are_alike(cases):
    for first, second in pairwise(cases):
        overlap = (first[1] == second[1])[first[1] > 0].mean()
        assert 0.3 < overlap < 0.95


def test_the_dataset_is_partial_where_it_says_so(tmp_path: Path):
    sources = {"a": ("liver",), "b": ("gallbladder", "spleen"), "none": ()}
    annotated = write_phantom(tmp_path / "D", 2, 1, SHAPE, (4.0, 2.0, 1.5), sources, seed=3)
    assert annotated["b_01"] == ["gallbladder", "spleen"]
    ids = {organ: label for label, organ in enumerate(ORGANS, start=1)}
    for case, organs in annotated.items():
        label_map, truth = read(tmp_path / f"D/labelsTr/{case}.nii.gz"), read(tmp_path / f"D/truthTr/{case}.nii.gz")
        assert set(np.unique(label_map)) == {0} | {ids[organ] for organ in organs}
        assert np.array_equal(label_map[label_map > 0], truth[label_map > 0])
        assert set(np.unique(truth)) == {0, 1, 2, 3, 4}
    image = SimpleITK.ReadImage(str(tmp_path / "D/imagesTs/test_00_0000.nii.gz"))
    assert image.GetSpacing() == (1.5, 2.0, 4.0)
    dataset_json = json.loads((tmp_path / "D/dataset.json").read_text())
    assert dataset_json["labels"] == {"background": 0} | ids
    assert dataset_json["numTraining"] == 6
    assert "sources" not in dataset_json


def test_the_seed_decides(tmp_path: Path):
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        write_phantom(tmp_path / name, 1, 0, SHAPE, seed=seed)
    first, again, other = (read(tmp_path / n / "imagesTr/site_a_00_0000.nii.gz") for n in ("first", "again", "other"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_existing_dataset_is_not_overwritten(tmp_path: Path):
    write_phantom(tmp_path, 1, 0, (8, 16, 16))
    with pytest.raises(FileExistsError):
        write_phantom(tmp_path, 1, 0, (8, 16, 16))
