"""Cases whose files are stored in different orders of axes, which nnU-Net cannot see: it works on voxels as stored."""

from __future__ import annotations

from collections.abc import Mapping

from nnunetv2_conemos.errors import InputError, shorten

AXES = ("LR", "PA", "SI")  # directions towards which the voxels of an axis may go
SHOWN = 3  # cases named for each orientation


def describe_orientations(of_cases: Mapping[str, str]) -> str:
    """Return how many cases are stored in which orientation; empty where there is only one, or none is known."""
    cases: dict[str, list[str]] = {}
    for case, orientation in of_cases.items():
        if orientation:
            cases.setdefault(orientation, []).append(case)
    if len(cases) < 2:
        return ""
    most_first = sorted(cases.items(), key=lambda item: -len(item[1]))
    counts = "; ".join(f"{len(own)} in {orientation} order ({shorten(own, SHOWN)})" for orientation, own in most_first)
    return f"images are stored in {len(cases)} orientations: {counts}"


def anatomical(orientation: str) -> str:
    """Return an orientation in capitals; raises InputError unless it names three directions, one of each axis."""
    letters = orientation.upper()
    if len(letters) != 3 or {next((pair for pair in AXES if letter in pair), "") for letter in letters} != set(AXES):
        raise InputError(f"expected one of each of {', '.join(AXES)}, such as LPS; found {orientation}")
    return letters
