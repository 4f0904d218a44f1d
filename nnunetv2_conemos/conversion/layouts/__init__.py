"""The layouts in which files are kept: which of them a folder has, or the one that the user named."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from nnunetv2_conemos.conversion.found import Layout
from nnunetv2_conemos.conversion.patterns import files_below
from nnunetv2_conemos.errors import InputError

LayoutName = Literal["auto", "masks", "segmentation", "nnunet"]

# layout -> its module, imported when it is used; each has `recognised(source, files)` and `layout(patterns)`
MODULES = MappingProxyType({
    "nnunet": "nnunetv2_conemos.conversion.layouts.nnunet",
    "segmentation": "nnunetv2_conemos.conversion.layouts.segmentation",
    "masks": "nnunetv2_conemos.conversion.layouts.masks",
})  # fmt: skip


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


def choose_layout(source: Path, name: LayoutName, patterns: Patterns, images_only: bool = False) -> tuple[Layout, str]:
    """Return the layout of a folder, and in words how it was found.

    `images_only`: folders without anything drawn are recognised as well. Raises InputError where `auto` finds no layout
    or several, naming what was tried.
    """
    if name == "auto" and patterns != Patterns():
        name = "masks" if "{label}" in patterns.masks or not patterns.masks else "segmentation"
    if name != "auto" and (patterns.images or name not in ("masks", "segmentation")):
        return module_of(name).layout(patterns), f"{name}, as you say"
    files = files_below(source)
    wanted = [name] if name != "auto" else [*MODULES]
    tried = {layout: module_of(layout).recognised(source, files, images_only) for layout in wanted}
    found = {layout: recognised for layout, recognised in tried.items() if recognised.patterns is not None}
    if "nnunet" in found:  # its dataset.json leaves no doubt
        found = {"nnunet": found["nnunet"]}
    if len(found) != 1:
        what = "several layouts" if found else "no layout"
        texts = "\n".join(f"  {layout}: {recognised.words}" for layout, recognised in (found or tried).items())
        raise InputError(
            f"{source}: expected files in one of the layouts {', '.join(wanted)}, found {what}:\n{texts}\nName the "
            "layout with --layout, and say where files in other places are, such as --image '{case}/ct.nii.gz' --mask "
            "'{case}/segmentations/{label}.nii.gz'."
        )
    ((layout, recognised),) = found.items()
    given = recognised.patterns or Patterns()
    own = Patterns(given.images, given.masks, patterns.table or given.table)
    return module_of(layout).layout(own), f"{layout}: {recognised.words}"


def module_of(layout: str) -> Any:
    """Import the module of a layout."""
    return importlib.import_module(MODULES[layout])
