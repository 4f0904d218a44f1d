"""Read the text, JSON and YAML that people write: strictly, and with the file in every message."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

import yaml

from nnunetv2_conemos.errors import FileError, InputError, MissingFileError, shorten

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_text(file: Path, where: str | None = None) -> str:
    """Read a text in UTF-8, or in UTF-16 where the file begins with its mark.

    `where` begins the messages; by default, the file does. Raises InputError that names the line for any other
    encoding, and OSError for a file that cannot be read.
    """
    content = _read_bytes(file, where)
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    return _decode(content, encoding, where or str(file))


def read_shared_json(file: Path) -> Any:
    """Read a JSON file that nnU-Net reads as well, so in UTF-8 without a mark; raises what `read_json` does."""
    return parse_json(_decode(_read_bytes(file), "utf-8", str(file)), str(file))


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object that nnU-Net reads as well; raises what `read_json` does, and ValueError for another type."""
    content = read_shared_json(file)
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object, found {type(content).__name__}. Correct the file.")
    return content


def read_json(file: Path, where: str | None = None) -> Any:
    """Read a JSON file; raises what `read_text` and `parse_json` do."""
    where = where or str(file)
    return parse_json(read_text(file, where), where)


def parse_json(text: str, where: str) -> Any:
    """Read a JSON text; raises InputError, starting with `where`, also for a key that an object has twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = [repr(key) for key in content if keys.count(key) > 1]
            raise InputError(f"{where}: {shorten(twice)} named more than once in one object. Keep one of them.")
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
        json.dumps(content, ensure_ascii=False).encode()
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{where}: not valid JSON (nested too deeply). Correct the file.") from None
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.reason}, a \\u escape). Correct the file.") from None
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}). Correct the file.") from None
    return content


def read_yaml(file: Path, where: str | None = None) -> Any:
    """Read a YAML file; raises InputError, also for a key that a mapping has twice, and what `read_text` does."""
    where = where or str(file)
    try:
        return yaml.load(read_text(file, where), UniqueKeyLoader)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{where}: not valid YAML (nested too deeply). Correct the file.") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        what = ", ".join(filter(None, (error.context, error.problem)))
        raise InputError(f"{where}: not valid YAML ({line}{what}). Correct it.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML ({' '.join(str(error).split())}). Correct it.") from None


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which would keep the last of two equal keys, read 010 as 8, and name no line of a value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in known:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' named more than once in one mapping", key.start_mark
                )
            known.add((key.tag, str(key.value)))
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            found = f"{node.value!r} is no {node.tag.rpartition(':')[2]}" if isinstance(node, yaml.ScalarNode) else ""
            problem = f"{found}{': ' if found else ''}{error}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        """Read a decimal number; other notations are hardly ever meant: 010 would be 8, and 1:30 would be 90."""
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9_]*)", node.value):
            raise ValueError("write it in decimal digits without leading zeros, or in quotes if it is a name")
        return self.construct_yaml_int(node)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """Read a string that can be written and be part of a path."""
        text = self.construct_yaml_str(node)
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("remove what stands for no character")
        return text


UniqueKeyLoader.add_constructor("tag:yaml.org,2002:str", UniqueKeyLoader.construct_text)
UniqueKeyLoader.add_constructor("tag:yaml.org,2002:int", UniqueKeyLoader.construct_plain_int)


def delimiter_of(line: str) -> str:
    """Return what separates the fields of a table, by its first line: commas, or what Excel writes instead."""
    return next((mark for mark in ",;\t" if mark in line), ",")


def _read_bytes(file: Path, where: str | None = None) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        said = "" if where in (None, str(file)) else f"{where}: "
        raise MissingFileError(f"{said}there is no file {file}. Correct the path, or write the file.") from None
    except OSError as error:
        raise FileError(f"{file} cannot be read: {error.strerror or error}.") from None


def _decode(content: bytes, encoding: str, where: str) -> str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"bytes that are not, in line {line}"
    else:
        if "\0" not in text and not text.startswith("\ufeff"):
            return text
        found = "NUL characters" if "\0" in text else "a byte order mark, which nnU-Net cannot read"
    raise InputError(f"{where}: expected text in UTF-8, found {found}. Save it as UTF-8 (in Excel: as CSV UTF-8).")
