"""Seeded mutations of what the commands read: JSON and YAML by structure, tables by field, any file by its bytes."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

NAMES = (
    "", " ", "a", "liver", "kidney", "spleen", "background", "ignore", "Liver", "liver ", "kidney, left", "a;b", "a=b",
    "../../outside", "../x", "a/b", "/", ".", "..", "a\0b", "a\nb", "CON", "-o", "--help", "*", "[a]", "?", "k*",
    "<script>alert(1)</script>", "`touch x`", "$(touch x)", "|", "'", '"', "\\", "%s", "{}", "~", "é", "e\u0301",
    "名前", "\u202e", "\ud800", "1", "0", "None", "true", "nan", "x" * 300, "y" * 5000,
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 5, 255, 256, 300, 65535, 65536, 2**31, 2**40, 2**63, 10**30, -(10**20), 0.5, 1.0, 1.0000001, 1e-300,
    1e308, math.nan, math.inf, -math.inf,
)  # fmt: skip
OTHERS: tuple[Any, ...] = (
    None, True, False, [], {}, [[]], [None], [1], ["a"], [1, 1], [0, 1], {"a": 1}, {"": None}, [[1, 2]], "[1]",
    ["../x"],
)  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """Return a value that few programs expect."""
    return copy.deepcopy(rng.choice(rng.choice((NAMES, NUMBERS, OTHERS))))


def structure(rng: random.Random, content: Any, below: str | None = None) -> tuple[Any, str]:
    """Return JSON-like content with one place changed (below the key `below`, if given), and what was done."""
    content = copy.deepcopy(content)
    root = {"": content}
    places = list(_places(root, ("",)))
    if below is not None:
        chosen = [place for place in places if place[1:2] == (below,)]
        if not chosen and isinstance(content, dict):
            content[below] = odd_value(rng)
            return content, f"{below} = {shown(content[below])}"
        places = chosen or places
    *path, key = rng.choice(places)
    parent = root
    for step in path:
        parent = parent[step]
    where, value = ".".join(map(str, (*path, key)[1:])) or "all", parent[key]
    return _change(rng, root, parent, key, value, where)


def _change(rng: random.Random, root: dict, parent: Any, key: Any, value: Any, where: str) -> tuple[Any, str]:
    how = rng.choice(("replace", "replace", "remove", "rename", "double", "neighbour", "swap", "insert", "wrap"))
    if how == "remove" and parent is not root:
        del parent[key]
    elif how == "rename" and isinstance(parent, dict) and parent is not root:
        new = rng.choice(NAMES)
        del parent[key]
        parent[new] = value
        where += f" to {shown(new)}"
    elif how == "double" and isinstance(parent, list):
        parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(value))
    elif how == "swap" and len(parent) > 1 and parent is not root:
        other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], parent[key]
    elif how == "neighbour" and isinstance(value, (int, float)) and not isinstance(value, bool):
        parent[key] = value + rng.choice((-2, -1, 1, 2, 0.5, 1e-7))
    elif how == "insert" and isinstance(value, (dict, list)):
        new = odd_value(rng)
        if isinstance(value, list):
            value.insert(rng.randrange(len(value) + 1), new)
        else:
            value[rng.choice(NAMES)] = new
        where += f" with {shown(new)}"
    elif how == "wrap":
        parent[key] = rng.choice(([value], {"a": value}, str(value)))
    else:
        how, parent[key] = "replace", odd_value(rng)
        where += f" by {shown(parent[key])}"
    return root[""], f"{how} {where}"


def _places(value: Any, path: tuple[Any, ...]):
    here = value
    for step in path:
        here = here[step]
    yield path
    for key in here if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ():
        yield from _places(value, (*path, key))


def shown(value: Any) -> str:
    """Return a value as a short text without line breaks."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def json_text(content: Any) -> bytes:
    """Return content as JSON, with NaN and lone surrogates as Python writes them."""
    return json.dumps(content, indent=1).encode()


def yaml_text(content: Any) -> bytes:
    """Return content as YAML."""
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode(errors="surrogatepass")


YAML_LINES = (
    b"? !!int \"\"\n", b"a: !!python/object/apply:os.system ['true']\n", b"a: &a [*a]\n", b"dataset: 2001-13-45\n",
    b"<<: 1\n", b"datasets: &x [*x, *x]\n", b"a: !!binary \"%%%\"\n", b"\tx: 1\n", b"- : -\n", b"? {a: 1}\n: 2\n",
    b"a: 1e999\n", b"a: .nan\n", b"%YAML 9.9\n", b"---\n---\n", b"a: *unknown\n", b"[1, 2]: 3\n",
)  # fmt: skip


def _lines_of(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True) or [b""]


def _repeat_line(rng: random.Random, data: bytes) -> bytes:
    lines = _lines_of(data)
    place = rng.randrange(len(lines))
    return b"".join([*lines[: place + 1], *([lines[place]] * rng.choice((1, 2, 50))), *lines[place + 1 :]])


def _drop_line(rng: random.Random, data: bytes) -> bytes:
    lines = _lines_of(data)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b"x")
    for _ in range(rng.choice((1, 1, 3, 20))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _splice(rng: random.Random, data: bytes) -> bytes:
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return (
        data[:a]
        + rng.choice((b"", data[a:b] * 2, rng.randbytes(8), b"\0" * 16, b'"', b"{", b",,", b";", b"\n"))
        + data[b:]
    )


TEXT: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "truncated": lambda rng, data: data[: rng.randrange(len(data) + 1)],
    "bits flipped": _flip,
    "spliced": _splice,
    "line repeated": _repeat_line,
    "line dropped": _drop_line,
    "odd line of YAML": lambda rng, data: data + rng.choice(YAML_LINES),
    "byte order mark": lambda rng, data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda rng, data: data.decode(errors="replace").encode("utf-16"),
    "Latin-1": lambda rng, data: data.replace(b"e", b"\xe9", rng.choice((1, 5))),
    "CRLF": lambda rng, data: data.replace(b"\n", b"\r\n"),
    "empty": lambda rng, data: b"",
    "zeros": lambda rng, data: b"\0" * len(data),
    "deep": lambda rng, data: rng.choice((b"[", b'{"a":')) * 100_000,
    "long field": lambda rng, data: data + b"z" * 140_000,
    "semicolons": lambda rng, data: data.replace(b",", b";"),
    "quotes": lambda rng, data: data.replace(b",", b'","', 1),
    "huge number": lambda rng, data: data.replace(b"1", b"1" * 5000, 1),
    "two documents": lambda rng, data: data + data,
}


def text(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return the bytes of a file, changed in one way, and what was done."""
    how = rng.choice(list(TEXT))
    return TEXT[how](rng, data), how


def _dangling(file: Path) -> None:
    os.symlink("nowhere", file)


def _loop(file: Path) -> None:
    os.symlink(file.name, file)


NOT_A_FILE: dict[str, Callable[[Path], None]] = {
    "missing": lambda file: None,
    "a folder": lambda file: file.mkdir(),
    "a dangling link": _dangling,
    "a link to itself": _loop,
}


def put(rng: random.Random, file: Path, data: bytes) -> str:
    """Write a file or, rarely, something else in its place; return what that was, empty for a file."""
    remove(file)
    if rng.random() < 0.03:
        what = rng.choice(list(NOT_A_FILE))
        NOT_A_FILE[what](file)
        return f", {what} in its place"
    file.write_bytes(data)
    return ""


def remove(path: Path) -> None:
    """Remove whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def fields(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return a CSV table with one field, column or row changed, and what was done."""
    rows = [line.split(",") for line in data.decode().splitlines()]
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    how = rng.choice(("field", "field", "field", "column dropped", "column doubled", "row short", "row long", "header"))
    if how == "column dropped":
        rows = [[*r[:column], *r[column + 1 :]] for r in rows]
    elif how == "column doubled":
        rows = [[*r, r[column]] for r in rows]
    elif how == "row short":
        rows[row] = rows[row][:column]
    elif how == "row long":
        rows[row] = [*rows[row], "more"]
    else:
        value = str(odd_value(rng))
        rows[0 if how == "header" else row][column] = value
        how += f" {shown(value)}"
    return "\n".join(",".join(r) for r in rows).encode(errors="surrogatepass") + b"\n", how
