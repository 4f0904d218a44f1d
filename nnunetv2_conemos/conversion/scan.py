"""What a folder of files holds, before any voxel is read: layout, cases, names, and the labels that they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_conemos.annotations.labels import IGNORE
from nnunetv2_conemos.annotations.names import require_case_ids
from nnunetv2_conemos.conversion.anonymise import Identities
from nnunetv2_conemos.conversion.case_maps import CaseTask
from nnunetv2_conemos.conversion.found import FoundCase, Layout, Structure
from nnunetv2_conemos.conversion.layouts.choose import BY_PATTERN, LayoutName, choose_layout
from nnunetv2_conemos.conversion.layouts.places import Patterns
from nnunetv2_conemos.conversion.names import NameTable, NameUse, Table, name_table
from nnunetv2_conemos.conversion.patterns import ending_of, files_below
from nnunetv2_conemos.conversion.problems import require_none
from nnunetv2_conemos.datasets.writer import common_ending
from nnunetv2_conemos.errors import InputError, shorten

Labels = Path | Table | Mapping[str, Sequence[str]]
KEPT = (*SimpleITKIO.supported_file_endings, ".nii")  # endings that nnU-Net reads and SimpleITK writes
NAMED_ALIKE = ("masks", "nnunet")  # layouts in which names are labels, unless a table says otherwise


@dataclass(frozen=True)
class Scan:
    """The cases of a folder, sorted, how they are laid out (`words` say so), their names and the table for these.

    `left` are volumes that no pattern names.
    """

    layout: Layout
    words: str
    cases: list[FoundCase]
    table: NameTable
    names: tuple[NameUse, ...]
    left: tuple[str, ...] = ()


def scan(
    source: Path, layout: LayoutName, patterns: Patterns, labels: Labels | None, images_only: bool = False
) -> Scan:
    """Look through a folder; raises InputError or FileError for what cannot be understood."""
    chosen, words = choose_layout(source, layout, patterns, images_only)
    cases = sorted(chosen.find(source), key=lambda case: case.case)
    if not cases:
        raise InputError(f"{source}: expected cases in the layout {chosen.name}, found none. Name another --layout.")
    require_case_ids([case.case for case in cases], str(source))
    ids = [case.case for case in cases]
    if twice := sorted({case for case in ids if ids.count(case) > 1}) if len(set(ids)) < len(ids) else []:
        raise InputError(
            f"{source}: several cases are called {shorten(twice)}. Name {{patient}} in the patterns as well."
        )
    default: Table = "names" if chosen.name in NAMED_ALIKE else "tg263"
    table = name_table({"any": []} if images_only else labels or default, cases)
    if images_only:
        return Scan(chosen, words, cases, table, ())
    left = volumes_left(source, cases) if chosen.name in BY_PATTERN else ()
    return Scan(chosen, words, cases, table, tuple(table.uses(cases)), left)


def volumes_left(source: Path, cases: Iterable[FoundCase]) -> tuple[str, ...]:
    """Return the volumes below a folder that are neither images nor hold structures: perhaps misplaced masks."""
    used = {file for case in cases for file in (*case.images, *(structure.file for structure in case.structures))}
    return tuple(file for file in files_below(source) if ending_of(file) and source / file not in used)


def left_note(left: Sequence[str], private: bool = False) -> str:
    """Return a note on volumes that no pattern names; empty where there are none."""
    return (
        f"{len(left)} volume(s) fit no pattern and are left out{'' if private else f': {shorten(left)}'}"
        if left
        else ""
    )


def tasks_of(found: Scan, identities: Identities) -> list[CaseTask]:
    """Return a task for each case with the structure of each label, in the order of the files.

    Raises ImportProblemsError for cases in which two names mean one label.
    """
    meaning = {use.name: use.label for use in found.names if use.outcome == "mapped" and use.label != IGNORE}
    tasks, problems = [], []
    for case in found.cases:
        own: dict[str, Structure] = {}
        for structure in case.structures:
            label = meaning.get(structure.name)
            if label is None:
                continue
            other = own.setdefault(label, structure)
            if other is not structure:
                problems.append(
                    f"case '{case.case}': expected one structure for '{label}', found '{other.name}' ({other.file}) "
                    f"and '{structure.name}' ({structure.file}). Remove one, or put its name under another label or "
                    "`ignore`."
                )
        tasks.append(CaseTask(case, identities.case[case.case], own))
    require_none(problems)
    return tasks


def channels_of(cases: Sequence[FoundCase], wanted: Sequence[str] | None) -> tuple[list[str], str]:
    """Return the names of the channels, and a note on how nnU-Net will take those that nobody named."""
    if wanted:
        return list(wanted), ""
    first = cases[0]
    if first.channels:
        return list(first.channels), ""
    number = len(first.images) if ending_of(first.images[0]) else 1
    if number > 1:
        names, mixed = [f"image {channel}" for channel in range(number)], ""
    else:
        ct = Counter(is_ct(case.images[0]) for case in cases)
        names, mixed = ["image" if ct[False] else "CT"], f"{ct[True]} of {len(cases)} cases are CT; " * (len(ct) > 1)
    how = "as CT, by the intensities of all cases" if names == ["CT"] else "each image by its own mean"
    called = f"channels are called {', '.join(names)}: nnU-Net normalises {how}. Name them with --channels"
    return names, f"{mixed}{called}{', or import each kind of image apart' if mixed else ''}."


def is_ct(image: Path) -> bool:
    """Return whether the modality of a DICOM file, or the name of another file or its folder, is CT."""
    if ending := ending_of(image):
        return "ct" in (image.name[: -len(ending)].lower(), image.parent.name.lower(), *image.stem.lower().split("_"))
    header = SimpleITK.ImageFileReader()
    header.SetFileName(str(image))
    try:
        header.ReadImageInformation()
        return header.GetMetaData("0008|0060").strip() == "CT"
    except RuntimeError:  # what is wrong with the file is said when it is read
        return False


def ending_for(cases: Sequence[FoundCase]) -> str:
    """Return the ending of the files of the result: that of most images, or .nii.gz where they have to be converted."""
    ending = common_ending([ending_of(case.images[0]) for case in cases])
    return ending if ending in KEPT else ".nii.gz"
