"""Usual places of images and of what is drawn on them: which pair of patterns names all volumes of a folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nnunetv2_conemos.conversion.patterns import VOLUMES, Pattern, ending_of
from nnunetv2_conemos.conversion.segment_files import SEG_NRRD
from nnunetv2_conemos.errors import shorten

ENDING = "{" + "|".join(VOLUMES) + "}"
IMAGE = "{ct|mr|mri|pet|image|img|volume|vol|scan|data|t1|t1c|t1ce|t2|flair|adc|dwi}"  # file names of images
IMAGES = "{images|image|imagesTr|img|imgs|scans|volumes|ct|mr|mri}"  # folders of images
DRAWN = "{segmentations|segmentation|segs|seg|masks|mask|labels|label|labelsTr|structures|annotations}"
ALONE = (
    f"{{case}}/{IMAGE}{ENDING}", f"{{patient}}/{{case}}/{IMAGE}{ENDING}", f"{IMAGES}/{{case}}_{{channel}}{ENDING}",
    f"{{case}}_{{channel}}{ENDING}", f"{IMAGES}/{{case}}{ENDING}", f"{{case}}{ENDING}",
)  # fmt: skip


class Patterns(NamedTuple):
    """Where files lie below the source, as patterns: an image file for each channel, masks or maps, tables of values.

    Empty where the layout shall find them itself.
    """

    images: tuple[str, ...] = ()
    masks: str = ""
    table: str = ""


class Recognised(NamedTuple):
    """What a layout makes of a folder: the patterns of its files, and in words what was found, or why nothing was."""

    patterns: Patterns | None
    words: str


class Assigned(NamedTuple):
    """The files of a folder: images by case and channel, what is drawn by case, and masks of cases without image."""

    images: dict[str, dict[str, list[str]]]
    drawn: dict[str, list[tuple[str, dict[str, str]]]]
    patients: dict[str, str]
    without_image: dict[str, list[str]]
    others: list[str]


def assign(files: Sequence[str], images: Sequence[Pattern], drawn: Pattern | None) -> Assigned:
    """Assign files to cases by patterns; a file that matches both is an image, unless it is drawn on another one.

    So `pt1.nii.gz` is an image and `pt1_liver.nii.gz` is a mask for `{case}.nii.gz` and `{case}_{label}.nii.gz`.
    """
    found = Assigned({}, {}, {}, {}, [])
    rest = []
    for file in sorted(files, key=lambda name: (len(name), name)):
        place = image_of(file, images)
        mask = drawn.match(file, found.images) if place and drawn else None
        if place is None or (mask and mask["id"] != place[1]["id"]):
            rest.append(file)
            continue
        channel, places = place
        found.images.setdefault(places["id"], {}).setdefault(channel, []).append(file)
        if "patient" in places:
            found.patients[places["id"]] = places["patient"]
    for file in sorted(rest):
        if drawn and (places := drawn.match(file, found.images)):
            found.drawn.setdefault(places["id"], []).append((file, places))
        elif drawn and (places := drawn.match(file)):
            found.without_image.setdefault(places["id"], []).append(file)
        else:
            found.others.append(file)
    return found


def image_of(file: str, images: Sequence[Pattern]) -> tuple[str, dict[str, str]] | None:
    """Return the channel (a text that sorts as it does) of an image, and what stands in the places of its pattern."""
    if file.lower().endswith(SEG_NRRD):
        return None
    for number, pattern in enumerate(images):
        if places := pattern.match(file):
            return places.get("channel", f"{number:04d}"), places
    return None


def recognise(files: Iterable[str], pairs: Sequence[tuple[str, str]], what: str, images_only: bool) -> Recognised:
    """Return the first pair of patterns, image and what is drawn, that names every volume of a folder.

    `what` is the word for what is drawn. Where no pair names all volumes, the words say which pair names most, and what
    it leaves over. `images_only`: images on which nothing is drawn are recognised as well.
    """
    volumes = [file for file in files if ending_of(file)]
    if not volumes:
        return Recognised(None, "no volumes (files *.nii.gz, *.nrrd, *.mha ...)")
    best, left = None, volumes
    for image, drawn in [*pairs, *((image, "") for image in ALONE if images_only)]:
        found = assign(volumes, [Pattern(image)], Pattern(drawn) if drawn else None)
        over = [*found.others, *(file for own in found.without_image.values() for file in own)]
        if found.images and (found.drawn or not drawn):
            if not over:
                return Recognised(Patterns((image,), drawn), f"{plain(image)} and {plain(drawn) or 'nothing drawn'}")
            if len(over) < len(left):
                best, left = (image, drawn), over
    tried = shorten((f"{plain(image)} + {plain(drawn)}" for image, drawn in pairs), 20)
    if best is None:
        return Recognised(None, f"none of {tried} names an image and {what}")
    return Recognised(
        None,
        f"{plain(best[0])} + {plain(best[1])} names {len(volumes) - len(left)} of {len(volumes)} volumes, but not "
        f"{shorten(left, 3)}; tried: {tried}",
    )


def plain(pattern: str) -> str:
    """Return a pattern that has alternatives as people would write it: `{case}/ct.nii.gz`."""
    for alternatives in (ENDING, IMAGE, IMAGES, DRAWN):
        pattern = pattern.replace(alternatives, alternatives[1:].partition("|")[0])
    return pattern
