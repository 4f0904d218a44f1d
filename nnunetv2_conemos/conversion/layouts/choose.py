"""Choose the layout in which files are kept: the one that a folder has, or the one that the user named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from nnunetv2_conemos.conversion.found import Layout
from nnunetv2_conemos.conversion.layouts import dicom, masks, nnunet, segmentation
from nnunetv2_conemos.conversion.layouts.places import Patterns, Recognised
from nnunetv2_conemos.conversion.patterns import files_below
from nnunetv2_conemos.errors import InputError

LayoutName = Literal["auto", "masks", "segmentation", "rtstruct", "dicomseg", "nnunet"]
BY_PATTERN = MappingProxyType({"masks": masks, "segmentation": segmentation})
DICOM = ("rtstruct", "dicomseg")


def choose_layout(source: Path, name: LayoutName, given: Patterns, images_only: bool = False) -> tuple[Layout, str]:
    """Return the layout of a folder, and in words how it was found.

    `images_only`: folders without anything drawn are recognised as well. Raises InputError where `auto` finds no layout
    or several, naming what was tried.
    """
    if given.images or given.masks:
        kind = name if name != "auto" else "masks" if "{label}" in given.masks or not given.masks else "segmentation"
        return with_patterns(kind, given), f"{kind}, by the patterns given"
    if name == "nnunet" or name in DICOM:
        return with_patterns(name, given), f"{name}, as you say"
    files = files_below(source)
    wanted = [name] if name != "auto" else ["nnunet", *DICOM, *BY_PATTERN]
    tried = {kind: recognised(kind, source, files, images_only) for kind in wanted}
    found = {kind: result for kind, result in tried.items() if result.patterns is not None}
    if "nnunet" in found:  # its dataset.json leaves no doubt
        found = {"nnunet": found["nnunet"]}
    if len(found) != 1:
        texts = "\n".join(f"  {kind}: {result.words}" for kind, result in (found or tried).items())
        raise InputError(
            f"{source}: expected files in one of the layouts {', '.join(wanted)}, found "
            f"{'several' if found else 'none'}:\n{texts}\nName the layout with --layout, and say where files in other "
            "places are, such as --image '{case}/ct.nii.gz' --mask '{case}/segmentations/{label}.nii.gz'."
        )
    ((kind, result),) = found.items()
    patterns = (result.patterns or given)._replace(table=given.table)
    return with_patterns(kind, patterns), f"{kind}: {result.words}"


def recognised(kind: str, source: Path, files: Sequence[str], images_only: bool) -> Recognised:
    """Return what a layout makes of the files of a folder."""
    if kind in DICOM:
        return dicom.recognised(kind, source, files, images_only)
    return (nnunet if kind == "nnunet" else BY_PATTERN[kind]).recognised(source, files, images_only)


def with_patterns(kind: str, patterns: Patterns) -> Layout:
    """Return a layout; raises InputError for patterns that it does not take, or that it needs."""
    if kind in BY_PATTERN:
        return BY_PATTERN[kind].layout(patterns)
    if patterns != Patterns():
        raise InputError(f"--layout {kind} knows where its files are: leave --image, --mask and --table out.")
    return nnunet.NNUNetLayout() if kind == "nnunet" else dicom.layout(kind)
