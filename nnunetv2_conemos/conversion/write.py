"""Pass 2: the map of codes of each case becomes a label map; then the folder of the import becomes the dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import SimpleITK

from nnunetv2_conemos.conversion.case_maps import CODES, RECORDS
from nnunetv2_conemos.datasets.label_maps import lookup
from nnunetv2_conemos.datasets.volumes import reading, write_image
from nnunetv2_conemos.files import remove

FOLDERS = ("imagesTr", "labelsTr", CODES, RECORDS)


def unfinished_folder(target: Path) -> Path:
    """Make the folder beside the target in which an import is built; that of an interrupted run is gone on with."""
    folder = target.with_name(f".{target.name}.importing")
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "labelsTr")
    (folder / "labelsTr").mkdir()
    return folder


def discard_others(folder: Path, cases: Iterable[str], ending: str, channels: int) -> None:
    """Delete what an interrupted run with other cases or settings has left in the folder of an import."""
    cases = list(cases)
    wanted = {
        "imagesTr": {f"{case}_{channel:04d}{ending}" for case in cases for channel in range(channels)},
        CODES: {f"{case}{ending}" for case in cases},
        RECORDS: {f"{case}.json" for case in cases},
    }
    for name, files in wanted.items():
        for path in (folder / name).iterdir():
            if path.name not in files:
                remove(path)
    for path in folder.iterdir():
        if path.name not in FOLDERS:
            remove(path)


def write_labels(case: str, folder: Path, ending: str, values: Sequence[int]) -> None:
    """Write the label map of a case, `values[code]` being the value of each code; raises VolumeError."""
    file = folder / CODES / f"{case}{ending}"
    with reading(file):
        codes = SimpleITK.ReadImage(str(file))
    label = lookup(dict(enumerate(values)))[SimpleITK.GetArrayViewFromImage(codes)]
    image = SimpleITK.GetImageFromArray(label.astype("uint8") if max(values) < 256 else label)
    image.CopyInformation(codes)
    write_image(image, folder / "labelsTr" / f"{case}{ending}")


def discard_workings(folder: Path) -> None:
    """Delete what only a later run would need, and `imagesTr` where images are only referenced."""
    for name in (CODES, RECORDS):
        shutil.rmtree(folder / name)
    if not any((folder / "imagesTr").iterdir()):
        (folder / "imagesTr").rmdir()
