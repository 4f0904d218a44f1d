"""Recognise DICOM structure sets and segmentations by their class, and import what reads them only then."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from nnunetv2_conemos.conversion.found import Layout
from nnunetv2_conemos.conversion.layouts.places import Patterns, Recognised
from nnunetv2_conemos.conversion.patterns import ending_of

# layout -> its class, in the module of its name, and the SOP class of its files
KINDS = MappingProxyType({
    "rtstruct": ("RTStructLayout", "1.2.840.10008.5.1.4.1.1.481.3"),
    "dicomseg": ("DicomSegLayout", "1.2.840.10008.5.1.4.1.1.66.4"),
})  # fmt: skip
MAGIC, START = b"DICM", 128
CLASS = b"\x02\x00\x02\x00UI"  # tag and type of the SOP class; two bytes of length and its text follow


def recognised(kind: str, source: Path, files: Sequence[str], images_only: bool) -> Recognised:
    """Return whether a folder holds DICOM files of a kind; with `images_only`, whether it holds DICOM at all."""
    classes = [sop_class(source / file) for file in files if not ending_of(file)]
    number, every = classes.count(KINDS[kind][1]), sum(map(bool, classes))
    if number or (images_only and every and kind == "rtstruct"):
        return Recognised(Patterns(), f"{number} DICOM file(s) of this kind among {every}")
    return Recognised(None, f"none of {every} DICOM file(s) is of this kind")


def layout(kind: str) -> Layout:
    """Return the layout of a kind of DICOM files."""
    module = importlib.import_module(f"nnunetv2_conemos.conversion.layouts.{kind}")
    return getattr(module, KINDS[kind][0])()


def sop_class(file: Path) -> str:
    """Return the class of a DICOM file from its first bytes; empty for other files."""
    try:
        with file.open("rb") as stream:
            head = stream.read(1024)
    except OSError:
        return ""
    place = head.find(CLASS, START) + len(CLASS)
    if head[START : START + 4] != MAGIC or place < len(CLASS):
        return ""
    length = int.from_bytes(head[place : place + 2], "little")
    return head[place + 2 : place + 2 + length].decode("ascii", "replace").strip("\0 ")
