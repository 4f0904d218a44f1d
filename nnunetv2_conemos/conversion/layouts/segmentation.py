"""One file with several structures: `.seg.nrrd` of 3D Slicer, or a label map beside a table value -> name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from nnunetv2_conemos.conversion.found import Drawn, FoundCase, Structure
from nnunetv2_conemos.conversion.layouts.masks import MasksLayout, channels_of, problems_of, require_images
from nnunetv2_conemos.conversion.layouts.places import (
    DRAWN,
    ENDING,
    IMAGE,
    IMAGES,
    Patterns,
    Recognised,
    assign,
    recognise,
)
from nnunetv2_conemos.conversion.patterns import Pattern, ending_of, files_below, filled
from nnunetv2_conemos.conversion.problems import require_none
from nnunetv2_conemos.conversion.segment_files import SEG_NRRD, read_layers, segments_of
from nnunetv2_conemos.conversion.value_tables import TABLES, read_values, table_beside
from nnunetv2_conemos.datasets.volumes import Volume
from nnunetv2_conemos.errors import ConemosError, InputError, VolumeError, shorten

SLICER = (
    (f"{{case}}/{IMAGE}{ENDING}", "{case}/*.seg.nrrd"),
    (f"{{case}}/{{case}}{ENDING}", "{case}/*.seg.nrrd"),
    (f"{{patient}}/{{case}}/{IMAGE}{ENDING}", "{patient}/{case}/*.seg.nrrd"),
    (f"{IMAGES}/{{case}}_{{channel}}{ENDING}", f"{DRAWN}/{{case}}.seg.nrrd"),
    (f"{IMAGES}/{{case}}{ENDING}", f"{DRAWN}/{{case}}.seg.nrrd"),
    (f"{{case}}_{{channel}}{ENDING}", "{case}.seg.nrrd"),
    (f"{{case}}_{IMAGE}{ENDING}", "{case}*.seg.nrrd"),
    (f"{{case}}{ENDING}", "{case}.seg.nrrd"),
)
MAPS = (
    (f"{{case}}/{IMAGE}{ENDING}", f"{{case}}/{DRAWN}{ENDING}"),
    (f"{{patient}}/{{case}}/{IMAGE}{ENDING}", f"{{patient}}/{{case}}/{DRAWN}{ENDING}"),
    (f"{IMAGES}/{{case}}_{{channel}}{ENDING}", f"{DRAWN}/{{case}}{ENDING}"),
    (f"{IMAGES}/{{case}}{ENDING}", f"{DRAWN}/{{case}}{ENDING}"),
    (f"{{case}}_{IMAGE}{ENDING}", f"{{case}}_{DRAWN}{ENDING}"),
    (f"{{case}}{ENDING}", f"{{case}}_{DRAWN}{ENDING}"),
)


def recognised(source: Path, files: Sequence[str], images_only: bool) -> Recognised:
    """Return where images and segmentations lie in a folder, if in one of the usual places."""
    if any(file.lower().endswith(SEG_NRRD) for file in files):
        return recognise(files, SLICER, "a segmentation", False)
    maps = recognise(files, MAPS, "a segmentation", False)
    if maps.patterns is None:
        return maps
    drawn = assign(files, [Pattern(maps.patterns.images[0])], Pattern(maps.patterns.masks)).drawn
    bare = [file for own in drawn.values() for file, _ in own if table_beside(source / file) is None]
    if bare:
        return Recognised(
            None,
            f"{maps.words}: no table value -> name beside {shorten(bare, 3)} (expected the same name with "
            f"{', '.join(TABLES)}); name one with --table",
        )
    return maps


def layout(patterns: Patterns) -> SegmentationLayout:
    """Return the layout with these patterns; raises InputError where none is given for segmentations."""
    if not patterns.masks:
        raise InputError("--mask: expected a pattern of the segmentations, such as '{case}/seg.seg.nrrd', found none.")
    require_images(patterns)
    return SegmentationLayout(tuple(map(Pattern, patterns.images)), Pattern(patterns.masks), patterns.table)


@dataclass(frozen=True)
class SegmentationLayout:
    """Images and segmentations in the places that patterns name.

    `table`: path below the source, or pattern with {case}, of tables value -> name for label maps; empty: each lies
    beside its map.
    """

    images: tuple[Pattern, ...]
    maps: Pattern
    table: str = ""
    name: str = "segmentation"

    def find(self, source: Path) -> list[FoundCase]:
        """Return all cases with their structures; raises ImportProblemsError for files that cannot be understood."""
        files = files_below(source)
        found = assign([file for file in files if ending_of(file)], self.images, self.maps)
        problems, cases = problems_of(found, self.images, self.maps), []
        for case, images in channels_of(found).items():
            structures: list[Structure] = []
            for file, places in found.drawn.get(case, ()):
                try:
                    structures += self.structures_of(source, file, places)
                except ConemosError as error:
                    problems.append(f"case '{case}': {error}")
            paths = tuple(source / file for file in images)
            cases.append(FoundCase(case, paths[0], paths, tuple(structures), found.patients.get(case)))
        require_none(problems)
        return cases

    def structures_of(self, source: Path, file: str, places: Mapping[str, str]) -> list[Structure]:
        """Return the structures of a file, from its header or its table."""
        path = source / file
        if file.lower().endswith(SEG_NRRD):
            return [Structure(segment.name, path, segment.key) for segment in segments_of(path)]
        table = source / filled(self.table, places) if self.table else table_beside(path)
        if table is None:
            raise InputError(
                f"{path}: expected a table value -> name beside it ({', '.join(TABLES)}), found none. "
                "Write it, or name one with --table."
            )
        return [Structure(name, path, str(value)) for value, name in read_values(table).items()]

    def read_image(self, case: FoundCase) -> Volume:
        """Read the image [C,*S] of a case; raises VolumeError."""
        return MasksLayout(self.images, None).read_image(case)

    def read_structures(self, case: FoundCase, structures: Sequence[Structure], image: Volume) -> Iterator[Drawn]:
        """Read structures file by file; raises VolumeError also for values that stand for none of them."""
        for file, own in groupby(structures, key=lambda structure: structure.file):
            layers = read_layers(file)
            require_named(layers.values(), [other for other in case.structures if other.file == file], file)
            for structure in own:
                yield Drawn(layers.mask(structure.key), layers.grid)


def require_named(values: Mapping[str, int], structures: Sequence[Structure], file: Path) -> None:
    """Raise VolumeError where a file has values that stand for no structure; `values`: key -> voxels."""
    nameless = [f"{key} ({count} voxels)" for key, count in values.items() if key not in {s.key for s in structures}]
    if nameless:
        raise VolumeError(
            f"{file}: expected the values of {shorten(f'{s.name} ({s.key})' for s in structures)}, found also "
            f"{shorten(nameless)}.",
            "Name them in its table or segments, or correct the file.",
        )
