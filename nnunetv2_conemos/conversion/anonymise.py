"""Replace the names of cases and patients by running numbers, and keep all that could hold names in private files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exc

from nnunetv2_conemos.conversion.found import FoundCase
from nnunetv2_conemos.conversion.problems import SHOWN, ImportProblemsError
from nnunetv2_conemos.errors import ConemosError, InputError
from nnunetv2_conemos.files import Writer, require_absent, write_aside


class Identities:
    """The ids of cases and patients in a result: their own, or numbers where a private table says who is who."""

    def __init__(self, cases: Sequence[FoundCase], anonymous: bool):
        width = max(4, len(str(len(cases))))
        patients = list(dict.fromkeys(case.patient for case in cases if case.patient))
        self.case = {found.case: found.case for found in cases}
        self.patient = {patient: patient for patient in patients}
        if anonymous:
            self.case = {found.case: f"case_{number:0{width}d}" for number, found in enumerate(cases, 1)}
            self.patient = {patient: f"patient_{number:0{width}d}" for number, patient in enumerate(patients, 1)}


def require_private(table: Path, target: Path, overwrite: bool) -> None:
    """Raise InputError for a private table within what is written, and ExistingFileError for one that exists."""
    if target.resolve() in table.resolve().parents:
        raise InputError(
            f"--anonymise {table}: expected a file outside of {target}, which others may get. Choose another."
        )
    if not table.parent.is_dir():
        raise InputError(f"--anonymise {table}: there is no folder {table.parent}. Make it.")
    require_absent(table, overwrite)


def messages_file(target: Path, private: Path | None) -> Path:
    """Return the file for long lists of problems: beside the target, or beside the private table."""
    return (
        private.with_name(f"{private.stem}.messages.txt")
        if private
        else target.with_name(f"{target.name}.problems.txt")
    )


@contextmanager
def problems_listed(target: Path, private: Path | None) -> Iterator[None]:
    """Write the problems that an error within the block names to a file, where they are many or could hold names."""
    file = messages_file(target, private)
    try:
        yield
    except ImportProblemsError as error:
        if private is None and len(error.problems) <= SHOWN:
            raise
        write_aside(file, lines_writer(error.problems))
        if private is None:
            raise InputError(f"{error}\n  all of them: {file}") from None
        raise InputError(f"{len(error.problems)} problem(s), which could hold names of patients: see {file}.") from None
    except Exception as error:  # libraries raise anything, and a traceback shows names
        if private is None:
            raise
        known = isinstance(error, ConemosError | OSError)
        write_aside(file, lines_writer([str(error) if known else format_exc()]))
        raise InputError(f"a problem, whose description could hold names of patients: see {file}.") from None
    if private is None:
        file.unlink(missing_ok=True)  # of an earlier run


def lines_writer(lines: Iterable[str]) -> Writer:
    """Return a function that writes lines of text to a file."""
    return lambda file: file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
