"""A raw dataset of nnU-Net's: what `sources` says is annotated; without `sources`, everything is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2_conemos.annotations.labels import BACKGROUND, LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.conversion.found import Drawn, FoundCase, Structure
from nnunetv2_conemos.conversion.layouts.masks import MasksLayout
from nnunetv2_conemos.conversion.layouts.places import Patterns, Recognised
from nnunetv2_conemos.conversion.segment_files import read_layers
from nnunetv2_conemos.datasets.dataset_json import read_raw_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.volumes import Volume
from nnunetv2_conemos.errors import InputError, MissingFileError, VolumeError, shorten


def recognised(source: Path, files: Sequence[str], images_only: bool) -> Recognised:
    """Return whether a folder is a raw dataset."""
    if "dataset.json" in files and any(file.startswith("imagesTr/") for file in files):
        return Recognised(Patterns(), "dataset.json and imagesTr")
    return Recognised(None, "no dataset.json with imagesTr")


@dataclass(frozen=True)
class NNUNetLayout:
    """A raw dataset: a label map per case, whose values dataset.json names, with gaps if it likes."""

    name: str = "nnunet"

    def find(self, source: Path) -> list[FoundCase]:
        """Return all cases; raises SourceError or FileError for what is wrong with dataset.json or its files."""
        dataset_json = read_raw_json(source, consecutive=False)
        labels = LabelSpace.from_dataset_json(dataset_json, consecutive=False)
        if labels.ignore is not None:
            raise InputError(
                f"{source}: expected labels without `ignore`, which cannot be imported. Use conemos merge."
            )
        files = raw_cases(source)
        if not files:
            raise MissingFileError(
                f"{source}: expected cases in imagesTr, found none. Images are CASE_0000.FILE_ENDING."
            )
        numbered = {BACKGROUND: 0, **{name: value for value, name in enumerate(labels.names, 1)}}
        table = SourceTable.from_dataset_json({**dataset_json, "labels": numbered}, files)
        channels = tuple(dataset_json["channel_names"].values())
        cases = []
        for case, entry in sorted(files.items()):
            label = Path(entry["label"])
            structures = tuple(
                Structure(name, label, ",".join(map(str, values)))
                for name, values in zip(labels.names, labels.values, strict=True)
                if name in table.annotated(case)
            )
            images = tuple(map(Path, entry["images"]))
            patient = table.patients.get(case)
            cases.append(FoundCase(case, images[0], images, structures, patient, channels=channels))
        return cases

    def read_image(self, case: FoundCase) -> Volume:
        """Read the image [C,*S] of a case; raises VolumeError."""
        return MasksLayout((), None).read_image(case)

    def read_structures(self, case: FoundCase, structures: Sequence[Structure], image: Volume) -> Iterator[Drawn]:
        """Read the labels of a map; raises VolumeError also for values of labels that are not annotated."""
        if not structures:
            return
        layers = read_layers(structures[0].file)
        known = {value for structure in case.structures for value in structure.key.split(",")}
        if foreign := [value for value in layers.values() if value not in known]:
            raise VolumeError(
                f"{structures[0].file}: expected the values of the labels annotated in it, {shorten(sorted(known))}, "
                f"found also {shorten(foreign)}.",
                "Correct the map, or `sources` in dataset.json.",
            )
        for structure in structures:
            yield Drawn(layers.mask(structure.key), layers.grid)
