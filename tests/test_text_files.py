"""Text, JSON and YAML that people write: what cannot be meant is an error that names file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunetv2_conemos.errors import ConemosError, InputError
from nnunetv2_conemos.text_files import read_json, read_object, read_text, read_yaml


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_as_windows_and_excel_write_it(tmp_path: Path, encoding: str):
    (tmp_path / "t").write_text("Müller, 日本\n", encoding=encoding)
    assert read_text(tmp_path / "t") == "Müller, 日本\n"


@pytest.mark.parametrize(
    "content", ["ok\nMüller".encode("cp1252"), "ok".encode("utf-16-le"), b"\xff\xfeo", bytes(range(256))]
)
def test_other_encodings_name_the_file(tmp_path: Path, content: bytes):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(InputError, match=r"/t: expected text in UTF-8, found .* Save it as UTF-8"):
        read_text(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "'b' named more than once"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ("9" * 5000, "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
    ],
)
def test_json_that_cannot_be_meant_names_the_file(tmp_path: Path, text: str, message: str):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(InputError, match=f"f.json: .*{message}"):
        read_object(tmp_path / "f.json")


def test_only_nnunets_own_files_must_have_no_byte_order_mark(tmp_path: Path):
    (tmp_path / "f.json").write_text(json.dumps({"ü": 1}, ensure_ascii=False), encoding="utf-8-sig")
    assert read_json(tmp_path / "f.json") == {"ü": 1}
    with pytest.raises(InputError, match="a byte order mark, which nnU-Net cannot read"):
        read_object(tmp_path / "f.json")


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    for file in (tmp_path / "none", tmp_path):
        with pytest.raises(ConemosError, match=file.name):
            read_json(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: {c: 1, 'c': 2}\n", r"line 2: 'c' named more than once"),
        ("a: 1\nb: !!int ''\n", "line 2: "),
        ("a: 1\nb: 2024-13-01\n", r"line 2: '2024-13-01' is no timestamp: month must be in 1\.\.12"),
        ("dataset: 010\n", "line 1: '010' is no int: write it in decimal digits"),
        ('name: "a\\0b"\n', "line 1: .* is no str: remove what stands for no character"),
        ("time: 1:30\n", "line 1: '1:30' is no int"),
        ("a: [1\nb: 2\n", "not valid YAML"),
        ("a: !!python/object:os.system x\n", "could not determine a constructor"),
        ("[" * 5000, "nested too deeply"),
        ("a: 1\n---\nb: 1\n", "expected a single document"),
        ("? {a: 1}\n: 2\n", "line 1: "),
    ],
)
def test_yaml_that_cannot_be_meant_names_file_and_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(InputError, match=f"r.yaml: .*{message}"):
        read_yaml(tmp_path / "r.yaml")


def test_yaml_may_name_a_key_in_several_mappings_and_override_what_it_merges(tmp_path: Path):
    (tmp_path / "r.yaml").write_text("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\nz: [{a: 0}, {a: -12}]\n")
    assert read_yaml(tmp_path / "r.yaml")["y"] == {"a": 1, "b": 3}
