"""Find the cases in a tree of DICOM files of several patients: a series each, with the structures drawn on it.

Structures belong to the series that their file refers to: by its UID, by the UIDs of slices, or else by the frame of
reference where only one series has it. All that is wrong in the tree is collected and said at once.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nnunetv2_conemos.annotations.names import MAX_BYTES
from nnunetv2_conemos.conversion.dicom_files import RTSTRUCT, Header, scan
from nnunetv2_conemos.conversion.found import FoundCase, Structure
from nnunetv2_conemos.conversion.problems import require_none
from nnunetv2_conemos.conversion.series import MOVE, Series, assemble
from nnunetv2_conemos.errors import VolumeError, shorten
from nnunetv2_conemos.parallel import default_processes, in_processes

MANY = 50  # files above which processes are worth their start


class References(NamedTuple):
    """What a file with structures says that they were drawn on: UIDs of series, slices and frames of reference."""

    series: frozenset[str]
    instances: frozenset[str]
    frames: frozenset[str]


class Drawing(NamedTuple):
    """A file with structures: what is in it, and what they were drawn on."""

    file: Path
    patient: str
    structures: tuple[Structure, ...]
    references: References


@dataclass
class Tree:
    """What was found below a folder: usable series by UID, why others are passed over, and all problems."""

    series: dict[str, Series] = field(default_factory=dict)
    patients: set[str] = field(default_factory=set)  # those with a series of slices, usable or not
    passed_over: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # patient -> reasons
    problems: list[str] = field(default_factory=list)


def find_cases(source: Path, modality: str, drawing_of: Callable[[Path], Drawing]) -> list[FoundCase]:
    """Return a case for every series below a folder, with the structures of all files of that modality.

    Raises ImportProblemsError for all that cannot be used: series that are no volume, and structures without one.
    """
    headers, problems = scan(source)
    drawings, wrong = drawings_of(headers, modality, drawing_of)
    named = {uid for drawing in drawings for uid in drawing.references.series}
    tree = tree_of([header for header in headers if header.modality != modality], named)
    tree.problems[:0] = [*problems, *wrong]
    drawn = match_all(drawings, tree)
    for patient in sorted(tree.passed_over.keys() - tree.patients):
        reason = tree.passed_over[patient][0]
        tree.problems.append(f"patient '{patient}': expected a series of slices, found none: {reason}. {MOVE}")
    if not (tree.series or tree.problems):
        tree.problems.append(
            f"{source}: expected a DICOM series of an image, found none. Name another folder or layout."
        )
    require_none(tree.problems)
    ids = sorted((case, uid) for uid, case in case_ids(tree.series).items())
    return [found_case(case, tree.series[uid], drawn[uid], tree) for case, uid in ids]


def drawings_of(
    headers: Iterable[Header], modality: str, drawing_of: Callable[[Path], Drawing]
) -> tuple[list[Drawing], list[str]]:
    """Read what each file of a modality holds; return the drawings and the problems."""
    jobs = [(drawing_of, header.file) for header in headers if header.modality == modality]
    found = in_processes(read_drawing, jobs, default_processes() if len(jobs) > MANY else 1, "Names of structures")
    return [one for one in found if isinstance(one, Drawing)], [one for one in found if isinstance(one, str)]


def read_drawing(drawing_of: Callable[[Path], Drawing], file: Path) -> Drawing | str:
    """Return what a file with structures holds, or what is wrong with it."""
    try:
        return drawing_of(file)
    except VolumeError as error:
        return str(error)


def require_different(structures: Sequence[Structure], file: Path) -> None:
    """Raise VolumeError where a file has no structure, or two with the same number."""
    if not structures:
        raise VolumeError(f"{file}: expected structures, found none.", "Restore it, or take this file away.")
    numbers = Counter(structure.key for structure in structures)
    for structure in structures:
        if numbers[structure.key] > 1:
            raise VolumeError(
                f"{file}: expected a number for each structure, found {numbers[structure.key]} structures "
                f"with the number {structure.key}, one of them '{structure.name}'.",
                "Export it again, or take this file away.",
            )


def tree_of(headers: Iterable[Header], named: Iterable[str]) -> Tree:
    """Group slices by patient, study and series, and make a volume of each series.

    Localizers, single slices and images without a place in the patient are passed over, unless structures are drawn on
    them (`named`: UIDs of series).
    """
    tree, groups = Tree(), defaultdict(list)
    for header in headers:
        groups[header.patient, header.study, header.series].append(header)
    for (patient, _, uid), group in groups.items():
        slices = [header for header in group if header.is_slice and not (header.localizer and uid not in named)]
        if reason := _reason_to_pass_over(group, slices, uid in named):
            tree.passed_over[patient].append(reason)
        elif slices:
            tree.patients.add(patient)
            try:
                _add(slices, tree)
            except VolumeError as error:
                tree.problems.append(str(error))
    return tree


def _add(slices: Sequence[Header], tree: Tree) -> None:
    uid = slices[0].series
    if uid in tree.series:
        other = tree.series[uid].files[0]
        raise VolumeError(
            f"{slices[0].file}: expected one patient and study in series {uid}, found others in {other}.",
            "Correct patient and study, or remove one of them.",
        )
    tree.series[uid] = assemble(slices)


def _reason_to_pass_over(group: Sequence[Header], slices: Sequence[Header], named: bool) -> str:
    if group[0].modality == RTSTRUCT:
        return "a structure set of the same patient is passed over (RTSTRUCT)"
    images = [header for header in group if header.size]
    if not slices and images:
        kind = "localizer" if any(header.localizer for header in images) else "no slices of an image"
        return f"a series of {len(images)} file(s) of the same patient is passed over: {kind} ({images[0].modality})"
    if len({header.position for header in slices}) == 1 and not named:
        return f"a series of one slice of the same patient is passed over ({slices[0].modality})"
    return ""


def match_all(drawings: Iterable[Drawing], tree: Tree) -> dict[str, list[Drawing]]:
    """Return the drawings on each series, by its UID; adds to the problems of the tree what belongs to none."""
    of_instance = {header.uid: uid for uid, series in tree.series.items() for header in series.slices}
    drawn: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        try:
            drawn[match(drawing, tree.series, of_instance)].append(drawing)
        except VolumeError as error:
            tree.problems.append(str(error))
    return drawn


def match(drawing: Drawing, series: dict[str, Series], of_instance: dict[str, str]) -> str:
    """Return the UID of the series that structures were drawn on; raises VolumeError where there is not just one."""
    wanted = drawing.references
    found = wanted.series & series.keys() or {of_instance[uid] for uid in wanted.instances & of_instance.keys()}
    if not (found or wanted.series or wanted.instances):
        found = {uid for uid, one in series.items() if one.slices[0].reference in wanted.frames - {""}}
    where = f"patient '{drawing.patient}', {drawing.file}"
    if len(found) != 1:
        said = wanted.series or wanted.instances or wanted.frames
        raise VolumeError(
            f"{where}: expected the series that it was drawn on ({shorten(sorted(said), 2) or 'it names none'}), found "
            f"{shorten(sorted(found), 3) if found else 'no usable series with that UID'}.",
            "Add the series, or take this file away." if not found else "Keep one of them, or take this file away.",
        )
    (uid,) = found
    reference = series[uid].slices[0].reference
    other = wanted.frames - {reference, ""}
    if other and reference:
        raise VolumeError(
            f"{where}: expected structures in the frame of reference of their series, {reference}, found "
            f"{shorten(sorted(other), 2)}.",
            "Export the structures again, registered to this series, or take this file away.",
        )
    if drawing.patient != series[uid].slices[0].patient:
        patient = series[uid].slices[0].patient
        raise VolumeError(
            f"{where}: expected the patient of its series, '{patient}', found '{drawing.patient}'.",
            "Correct the patient of one of them, or take this file away.",
        )
    return uid


def case_ids(series: dict[str, Series]) -> dict[str, str]:
    """Return a case id for each series: the patient, and a number where a patient has several series."""
    groups: dict[str, list[tuple[Any, ...]]] = defaultdict(list)
    for uid, one in series.items():
        first = one.slices[0]
        groups[as_file_name(first.patient).lower()].append((first.patient, first.date, first.study, first.number, uid))
    ids = {}
    for group in groups.values():
        for place, (patient, *_, uid) in enumerate(sorted(group), 1):
            ids[uid] = as_file_name(patient) + (f"_{place}" if len(group) > 1 else "")
    return ids


def as_file_name(name: str) -> str:
    """Return a name in letters, digits, dots, underscores and hyphens, without accents."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9.-]+", "_", plain).strip("._")[: MAX_BYTES - 8] or "unknown"


def found_case(case: str, series: Series, drawings: Sequence[Drawing], tree: Tree) -> FoundCase:
    """Return a case, with notes on its series, its structures and what else there is of its patient."""
    first, uids = series.slices[0], {header.uid for header in series.slices}
    notes = [*series.notes, *tree.passed_over[first.patient]]
    for drawing in drawings:
        missing = drawing.references.instances - uids
        if missing:
            notes.append(
                f"{len(missing)} of the {len(drawing.references.instances)} slices that structures refer to are not in "
                "the series"
            )
        if not (drawing.references.series or drawing.references.instances):
            notes.append("structures name no series; they were matched by the frame of reference alone")
    if not first.patient:
        notes.append("its headers name no patient: cases of one patient cannot be kept together")
    structures = tuple(structure for drawing in drawings for structure in drawing.structures)
    return FoundCase(
        case, first.file.parent, series.files, structures, first.patient or None, tuple(notes), first.series
    )
