"""One mask file for each structure: `case/segmentations/ORGAN.nii.gz`, `case_ORGAN.nii.gz`, a folder per organ, ..."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_conemos.annotations.names import require_case_ids
from nnunetv2_conemos.conversion.found import Drawn, FoundCase, Structure
from nnunetv2_conemos.conversion.layouts.places import (
    DRAWN,
    ENDING,
    IMAGE,
    IMAGES,
    Assigned,
    Patterns,
    Recognised,
    assign,
    recognise,
)
from nnunetv2_conemos.conversion.patterns import Pattern, ending_of, files_below, filled
from nnunetv2_conemos.conversion.problems import require_none
from nnunetv2_conemos.conversion.segment_files import SEG_NRRD, count_values
from nnunetv2_conemos.conversion.value_tables import table_beside
from nnunetv2_conemos.datasets.volumes import Volume, read_image, read_label_map
from nnunetv2_conemos.errors import InputError, VolumeError, shorten

PAIRS = (
    (f"{{case}}/{IMAGE}{ENDING}", f"{{case}}/{DRAWN}/{{label}}{ENDING}"),
    (f"{{case}}/{{case}}{ENDING}", f"{{case}}/{DRAWN}/{{label}}{ENDING}"),
    (f"{{patient}}/{{case}}/{IMAGE}{ENDING}", f"{{patient}}/{{case}}/{DRAWN}/{{label}}{ENDING}"),
    (f"{{case}}/{IMAGE}{ENDING}", f"{{case}}/{{label}}{ENDING}"),
    (f"{IMAGES}/{{case}}_{{channel}}{ENDING}", f"{DRAWN}/{{label}}/{{case}}{ENDING}"),
    (f"{IMAGES}/{{case}}_{{channel}}{ENDING}", f"{DRAWN}/{{case}}/{{label}}{ENDING}"),
    (f"{IMAGES}/{{case}}_{{channel}}{ENDING}", f"{DRAWN}/{{case}}_{{label}}{ENDING}"),
    (f"{IMAGES}/{{case}}{ENDING}", f"{DRAWN}/{{label}}/{{case}}{ENDING}"),
    (f"{IMAGES}/{{case}}{ENDING}", f"{DRAWN}/{{case}}/{{label}}{ENDING}"),
    (f"{IMAGES}/{{case}}{ENDING}", f"{DRAWN}/{{case}}_{{label}}{ENDING}"),
    (f"{IMAGES}/{{case}}{ENDING}", f"{{label}}/{{case}}{ENDING}"),
    (f"{{case}}_{{channel}}{ENDING}", f"{{case}}_{{label}}{ENDING}"),
    (f"{{case}}_{IMAGE}{ENDING}", f"{{case}}_{{label}}{ENDING}"),
    (f"{{case}}{ENDING}", f"{{case}}_{{label}}{ENDING}"),
)
PLAIN = ({0}, {1}, {0, 1}, {0, 255}, {255})  # sets of values that a mask may have


def recognised(source: Path, files: Sequence[str], images_only: bool) -> Recognised:
    """Return where images and masks lie in a folder, if in one of the usual places."""
    if any(file.lower().endswith(SEG_NRRD) for file in files):
        return Recognised(None, "there are .seg.nrrd files, which hold several structures each")
    found = recognise(files, PAIRS, "a mask", images_only)
    if any(ending_of(file) and table_beside(source / file) for file in files):
        return Recognised(None, "there are tables value -> name beside volumes, which hold several structures each")
    return found


def layout(patterns: Patterns) -> MasksLayout:
    """Return the layout with these patterns; raises InputError for a pattern of masks without {label}."""
    require_images(patterns)
    images, masks = tuple(map(Pattern, patterns.images)), Pattern(patterns.masks) if patterns.masks else None
    if masks and not masks.has_label:
        raise InputError(
            f"--mask '{masks.text}': expected {{label}} in it, the name of what is drawn, found none. Files that hold "
            "several structures are --layout segmentation."
        )
    return MasksLayout(images, masks)


def require_images(patterns: Patterns) -> None:
    """Raise InputError where no pattern says where the images are."""
    if not patterns.images:
        raise InputError(
            f"--mask '{patterns.masks}': expected a pattern of the images as well, found none. Add --image, such as "
            "--image '{case}/ct.nii.gz'."
        )


@dataclass(frozen=True)
class MasksLayout:
    """Images and masks in the places that patterns name, one pattern per channel; without `masks`, images only."""

    images: tuple[Pattern, ...]
    masks: Pattern | None
    name: str = "masks"

    def find(self, source: Path) -> list[FoundCase]:
        """Return all cases with their masks; raises ImportProblemsError for files that do not fit together."""
        found = assign(files_below(source), self.images, self.masks)
        require_none(problems_of(found, self.images, self.masks))
        return [
            FoundCase(
                case,
                source / images[0],
                tuple(source / file for file in images),
                tuple(Structure(places["label"], source / file) for file, places in found.drawn.get(case, ())),
                found.patients.get(case),
            )
            for case, images in channels_of(found).items()
        ]

    def read_image(self, case: FoundCase) -> Volume:
        """Read the image [C,*S] of a case; raises VolumeError."""
        return read_image(case.images, SimpleITKIO(), len(case.images))

    def read_structures(self, case: FoundCase, structures: Sequence[Structure], image: Volume) -> Iterator[Drawn]:
        """Read one mask after the other; raises VolumeError also for values other than 0 and 1, or 0 and 255."""
        for structure in structures:
            label_map = read_label_map(structure.file, SimpleITKIO())
            values = count_values(label_map.data).keys()
            if values not in PLAIN:
                raise VolumeError(
                    f"{structure.file}: expected a mask of 0 and 1, or of 0 and 255, found the values "
                    f"{shorten(map(str, sorted(values)))}.",
                    "Write one mask per structure, or import label maps as --layout segmentation.",
                )
            yield Drawn(label_map.data > 0, label_map.grid)


def channels_of(found: Assigned) -> dict[str, list[str]]:
    """Return case -> its image files in order of channels."""
    return {case: [own[channel][0] for channel in sorted(own)] for case, own in sorted(found.images.items())}


def unlike_channels(found: Assigned) -> list[str]:
    """Return a problem for each case whose numbers of channels are not those of the first case."""
    first, *_ = sorted(found.images)
    expected = sorted(found.images[first])
    return [
        f"case '{case}': expected the channels {', '.join(expected)} of case '{first}', found "
        f"{', '.join(sorted(own))}. Add the missing image, or import these cases into a dataset of their own."
        for case, own in sorted(found.images.items())
        if sorted(own) != expected
    ]


def masks_for_images(found: Assigned, drawn: Pattern) -> list[str]:
    """Return a problem for each image without masks that is called as masks of other cases are."""
    labels = {places.get("label", "") for own in found.drawn.values() for _, places in own}
    named = [Pattern(filled(drawn.text, {"label": label})) for label in sorted(labels) if "{" not in label]
    bare = [
        file for case in found.images.keys() - found.drawn.keys() for own in found.images[case].values() for file in own
    ]
    return [
        f"case '{places['id']}': expected an image of it beside {file}, which is called as masks of other cases are, "
        "found none. Add it, or move or rename this file."
        for file in sorted(bare)
        if (places := next(filter(None, (pattern.match(file) for pattern in named)), None))
    ]


def problems_of(found: Assigned, images: Sequence[Pattern], drawn: Pattern | None) -> list[str]:
    """Return what is wrong with the files of a folder, case by case."""
    expected = " + ".join(pattern.text for pattern in images)
    if not found.images:
        return [
            f"expected images {expected}, found none among {len(found.others)} file(s), such as "
            f"{shorten(found.others, 3) or 'none'}. Correct --image."
        ]
    problems = []
    for case, channels in sorted(found.images.items()):
        for files in channels.values():
            if len(files) > 1:
                problems.append(
                    f"case '{case}': expected one image {expected}, found {len(files)}: {shorten(files)}. Remove all "
                    "but one, or name a pattern for each channel: --image A B."
                )
        if len(images) > 1 and len(channels) != len(images):
            have = shorten(file for files in channels.values() for file in files)
            problems.append(f"case '{case}': expected {len(images)} channels {expected}, found {have}. Add the file.")
    if len(images) == 1:
        problems += unlike_channels(found)
    if drawn:
        problems += masks_for_images(found, drawn)
    for case, files in sorted(found.without_image.items()):
        problems.append(
            f"case '{case}': expected an image {expected}, found only {shorten(files, 3)}. Add it, or remove these."
        )
    try:
        require_case_ids(found.images, "names of folders and files")
    except InputError as error:
        problems.append(str(error))
    if drawn and not found.drawn:
        problems.append(
            f"expected masks {drawn.text}, found none for {len(found.images)} image(s); other files: "
            f"{shorten(found.others, 3) or 'none'}. Correct --mask."
        )
    return problems
