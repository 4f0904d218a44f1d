"""All problems of a scan at once: people correct hundreds of files, and one error for each run would take them days."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2_conemos.errors import InputError

SHOWN = 20


class ImportProblemsError(InputError):
    """Error for files that cannot be imported; `problems` names each of them, the message the first ones."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        rest = len(self.problems) - SHOWN
        lines = [
            f"{len(self.problems)} problem(s):",
            *self.problems[:SHOWN],
            *([f"and {rest} more"] if rest > 0 else []),
        ]
        super().__init__("\n  ".join(lines))

    def __reduce__(self) -> tuple[type[ImportProblemsError], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


def require_none(problems: Sequence[str]) -> None:
    """Raise ImportProblemsError where there are any."""
    if problems:
        raise ImportProblemsError(problems)
