"""One way for the data to flow: a folder imports from those before it, and no method imports another."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "nnunetv2_conemos"
FLOORS = (
    "errors", "records", "text_files", "signals", "locks", "journal", "ownership", "files", "parallel", "doorway",
    "guard", "subprocesses", "environment",
    "annotations", "datasets", "conversion", "networks", "losses", "training", "inference", "evaluation", "methods",
    "benchmark", "demo", "commands", "cli",
)  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
PUBLIC = PACKAGE / "__init__.py"  # re-exports from everywhere


def rooms(file: Path) -> tuple[str, ...]:
    return file.relative_to(PACKAGE).with_suffix("").parts


def imported(file: Path) -> Iterator[tuple[str, ...]]:
    """What a file imports, as the rooms it lies in; a module of another package has its name alone."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((*node.module.split("."), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: "/".join(rooms(file)))
def test_imports_point_one_way(file: Path):
    here = rooms(file)
    for package, *there in imported(file):
        assert package != "argparse" or here[0] in ("commands", "cli"), "argparse stays in commands/"
        if package != PACKAGE.name or not there or file == PUBLIC:
            continue
        assert FLOORS.index(there[0]) <= FLOORS.index(here[0]), f"{'.'.join(here)} imports {'.'.join(there)}"
        if here[0] == there[0] == "methods" and here[1] != "__init__":
            assert there[1] == here[1], f"method {here[1]} imports method {there[1]}"


def test_files_and_classes_stay_short():
    lines = {"/".join(rooms(file)): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: number for name, number in lines.items() if number > 250}
    classes = [
        node for file in FILES for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)
    ]
    assert not [node.name for node in classes if (node.end_lineno or 0) - node.lineno >= 150]
