"""A generated abdomen: CT-like volumes with four touching organs, of which every source annotates only some.

Liver and spleen have nearly the same density, so that size, shape and neighbours must tell them apart; the stomach is
close to the tissue around it; the gallbladder is small. Every case is deformed in its own way. Arrays are [z, y, x].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK

from nnunetv2_conemos.files import write_json


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and radii in (z, y, x), where the volume spans [-1, 1] on every axis; density in Hounsfield units."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    density: float


ORGANS = {  # in the order of the label ids 1..4
    "liver": Ellipsoid((0.05, -0.08, -0.36), (0.62, 0.50, 0.42), 120.0),
    "spleen": Ellipsoid((0.10, 0.20, 0.57), (0.42, 0.38, 0.20), 120.0),
    "stomach": Ellipsoid((0.00, -0.22, 0.34), (0.50, 0.34, 0.38), 75.0),
    "gallbladder": Ellipsoid((-0.20, 0.36, -0.14), (0.32, 0.20, 0.22), 0.0),
}
SOURCES = {"site_a": ("liver",), "site_b": ("spleen", "gallbladder"), "site_c": ("liver", "stomach")}
AIR, FAT, TISSUE, BONE = -1000.0, -90.0, 35.0, 350.0
NOISE = 18.0  # standard deviation, Hounsfield units


def make_case(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Make one case: image in Hounsfield units (float32) and complete label map (uint8), both of the given shape."""
    where = _deformed_grid(rng, shape)
    image = np.full(shape, AIR)
    image[_distance(where, (0, 0, 0), (9, 0.84, 0.96)) < 1] = FAT
    inside = _distance(where, (0, 0, 0), (9, 0.74, 0.87)) < 1
    image[inside] = TISSUE
    image[_distance(where, (0, 0.60, 0), (9, 0.14, 0.16)) < 1] = BONE
    distances = np.stack([_distance(where, *_varied(rng, organ)) for organ in ORGANS.values()])
    nearest = np.where(distances.min(0) < 1, distances.argmin(0) + 1, 0)
    truth = np.where(inside, nearest, 0).astype(np.uint8)
    for label, organ in enumerate(ORGANS.values(), start=1):
        image[truth == label] = organ.density + rng.normal(0, 4)
    image = _blurred(image) + 8 * _smooth_field(rng, where) + rng.normal(0, NOISE, shape)
    return np.maximum(image, AIR).astype(np.float32), truth


def write_phantom(
    folder: Path,
    cases_per_source: int = 4,
    test_cases: int = 4,
    shape: tuple[int, int, int] = (48, 64, 64),
    spacing: tuple[float, float, float] = (3.0, 2.5, 2.5),
    sources: Mapping[str, Sequence[str]] = SOURCES,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Write a raw nnU-Net dataset to `folder` (`.../nnUNet_raw/DatasetXXX_NAME`); return case -> annotated organs.

    `sources` maps a source to the organs it annotates (an empty list = unlabelled); its cases are named
    `<source>_<number>`. labelsTr holds the annotated organs only, truthTr the complete maps of the same cases,
    labelsTs those of the test cases. dataset.json has no `sources` yet: `conemos declare` writes them. `shape` and
    `spacing` (mm) are (z, y, x); a thin, widely spaced z makes the dataset anisotropic.
    """
    rng = np.random.default_rng(seed)
    for name in ("imagesTr", "labelsTr", "truthTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True)
    annotated = {f"{name}_{i:02d}": list(organs) for name, organs in sources.items() for i in range(cases_per_source)}
    for case, organs in annotated.items():
        image, truth = make_case(rng, shape)
        ids = [label for label, organ in enumerate(ORGANS, start=1) if organ in organs]
        _write(folder / "imagesTr" / f"{case}_0000.nii.gz", image, spacing)
        _write(folder / "labelsTr" / f"{case}.nii.gz", np.where(np.isin(truth, ids), truth, 0), spacing)
        _write(folder / "truthTr" / f"{case}.nii.gz", truth, spacing)
    for i in range(test_cases):
        image, truth = make_case(rng, shape)
        _write(folder / "imagesTs" / f"test_{i:02d}_0000.nii.gz", image, spacing)
        _write(folder / "labelsTs" / f"test_{i:02d}.nii.gz", truth, spacing)
    labels = {"background": 0} | {organ: label for label, organ in enumerate(ORGANS, start=1)}
    dataset_json = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(annotated)}
    write_json(folder / "dataset.json", dataset_json | {"file_ending": ".nii.gz"})
    return annotated


def _deformed_grid(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Return coordinates [3, *shape] in [-1, 1], scaled, rotated in the axial plane and bent smoothly."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    bend = np.stack([_smooth_field(rng, grid) for _ in range(3)])
    angle = rng.uniform(-0.12, 0.12)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return np.tensordot(turn * rng.uniform(0.94, 1.08, (3, 1)), grid, axes=1) + 0.06 * bend


def _smooth_field(rng: np.random.Generator, grid: np.ndarray, waves: int = 6) -> np.ndarray:
    """Return a sum of slow cosines with random directions and phases, [*shape], of about unit variance."""
    directions = rng.uniform(-1, 1, (waves, 3)) * np.pi
    phases = rng.uniform(0, 2 * np.pi, (waves, 1, 1, 1))
    return np.cos(np.tensordot(directions, grid, axes=1) + phases).sum(0) * np.sqrt(2 / waves)


def _varied(rng: np.random.Generator, organ: Ellipsoid) -> tuple[np.ndarray, np.ndarray]:
    return np.array(organ.centre) + rng.uniform(-0.05, 0.05, 3), np.array(organ.radii) * rng.uniform(0.88, 1.12, 3)


def _distance(where: np.ndarray, centre: Sequence[float] | np.ndarray, radii: Sequence[float] | np.ndarray):
    """Return the distance to the centre in units of the radii: below 1 inside the ellipsoid."""
    offset = where - np.reshape(centre, (3, 1, 1, 1))
    return np.sqrt(np.square(offset / np.reshape(radii, (3, 1, 1, 1))).sum(0))


def _blurred(image: np.ndarray) -> np.ndarray:
    """Average with both neighbours on every axis, like the partial volume effect of a scanner."""
    for axis in range(3):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        lower, upper = (np.take(padded, np.arange(n, n + image.shape[axis]), axis) for n in (0, 2))
        image = (lower + 2 * image + upper) / 4
    return image


def _write(path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> None:
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])  # SimpleITK counts x, y, z
    SimpleITK.WriteImage(image, str(path))
