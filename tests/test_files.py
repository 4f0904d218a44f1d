"""Files and folders appear whole or not at all, whatever happens in between; one process writes them at a time."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import FULL, KILL, TERM, run_forked, snapshot

from nnunetv2_conemos.errors import ExistingFileError, FileError
from nnunetv2_conemos.files import (
    exclusive,
    json_writer,
    new_folder,
    require_absent,
    write_aside,
    write_json,
    write_together,
)
from nnunetv2_conemos.ownership import RECORD
from nnunetv2_conemos.signals import ended_by_signals

NEVER = 10**9
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def write_set(folder: Path, text: str) -> None:
    """Two files and a folder with two files that belong together."""
    others = {folder / "one.json": json_writer(text), folder / "two.json": json_writer(text)}
    with new_folder(folder / "set", overwrite=True, files=others) as aside:
        write_json(aside / "three.json", text)
        (aside / "four").write_text(text)


def write_files(folder: Path, text: str) -> None:
    with exclusive(folder / "one.json"):
        write_together(
            {folder / f"{name}.json": json_writer(text) for name in ("three", "two", "one")}, folder / "one.json"
        )


@pytest.mark.parametrize(("write", "exists"), [(write_set, True), (write_files, True), (write_files, False)])
@pytest.mark.parametrize("fault", [KILL, TERM, FULL])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_a_fault_at_any_operation_leaves_all_or_nothing(write, fault: int, exists: bool, every: int, tmp_path: Path):
    def command() -> int:
        with ended_by_signals("writing"):
            try:
                write(tmp_path, "new")
            except FileError as error:
                print(error)
                return 2
        return 0

    def before() -> dict[str, bytes]:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        if exists:
            write(tmp_path, "old")
        return snapshot(tmp_path)

    write(tmp_path, "new")
    complete, log = snapshot(tmp_path), tmp_path.with_name("log")
    for number in range(1, 200, every):
        old = before()
        status = run_forked(command, number, fault, tmp_path, log)
        if status == 0:
            break
        assert status == {KILL: -9, TERM: 143, FULL: 2}[fault], log.read_text()
        if fault == FULL:
            assert "No space left on device" in log.read_text()
            assert str(tmp_path) in log.read_text()
        if fault != KILL:
            assert snapshot(tmp_path) in (old, complete), "nothing left, and nothing mixed"
        if fault == KILL:
            assert run_forked(command, NEVER, KILL, tmp_path, log) == 0, log.read_text()
            assert snapshot(tmp_path) == complete, f"repaired after a kill at operation {number}"
    assert number > 10
    assert not list(tmp_path.rglob(".*"))


HOLD = """
import sys, time
from pathlib import Path
from nnunetv2_conemos.files import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_writes_and_the_lock_ends_with_the_first(tmp_path: Path):
    target = tmp_path / "new" / "Dataset100_A"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FileError, match=f"Dataset100_A is being written by process {holder.pid} "), new_folder(target):
        pass
    holder.kill()
    holder.wait()
    with new_folder(target) as aside:
        (aside / "file").touch()
    assert sorted(path.name for path in target.parent.iterdir()) == ["Dataset100_A"]


def test_leftovers_of_dead_processes_go_and_files_being_written_stay(tmp_path: Path):
    for name in (".result.4711", f".result.{16 * 'a'}", ".other.4711", ".result.replaced"):
        (tmp_path / name).touch()
    (tmp_path / ".result.unfinished").mkdir()
    write_json(tmp_path / "result", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".other.4711",
        ".result.replaced",
        ".result.unfinished",
        "result",
    ]
    with exclusive(tmp_path / "result"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.4711", "result"]

    def nested(_: Path) -> None:
        write_json(tmp_path / "result", "by another process")
        assert len(list(tmp_path.glob(".result.*"))) == 1, "that which is being written is not a leftover"

    write_aside(tmp_path / "result", nested)


def test_a_replaced_folder_is_deleted_where_a_full_disk_lets_nothing_be_renamed(tmp_path: Path, monkeypatch):
    rename = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.name.endswith(".unfinished"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", full)
    for content in "old", "new":
        with new_folder(tmp_path / "data", overwrite=True) as aside:
            (aside / "file").write_text(content)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data" / "file").read_text() == "new"


def test_a_folder_that_was_moved_aside_is_put_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with new_folder(tmp_path / "data") as aside:
        (aside / "file").write_text("old")
    (tmp_path / "data").rename(tmp_path / ".data.replaced")  # a kill between two renames
    with pytest.raises(ExistingFileError):
        require_absent(tmp_path / "data", overwrite=False)
    assert (tmp_path / "data" / "file").read_text() == "old"
    assert "put back" in capsys.readouterr().err


def test_overwrite_replaces_only_what_this_package_wrote(tmp_path: Path):
    target = tmp_path / "Dataset600_Foo"
    (target / "chapters").mkdir(parents=True)
    (target / "chapters" / "thesis.tex").write_text("years of work")
    with pytest.raises(ExistingFileError, match=r"chapters/thesis\.tex"):
        require_absent(target, overwrite=True)
    (target / "chapters").rename(tmp_path / "thesis")
    with new_folder(target, overwrite=True) as aside:
        (aside / "labelsTr").mkdir()
        (aside / "labelsTr" / "a.nii.gz").touch()
    assert (target / RECORD).is_file()
    require_absent(target, overwrite=True)
    (target / "imagesTs").symlink_to(tmp_path / "thesis")
    with pytest.raises(ExistingFileError, match="imagesTs, which this package did not write"), new_folder(target, True):
        pass
    assert (tmp_path / "thesis" / "thesis.tex").is_file()


def test_planted_links_are_not_followed(tmp_path: Path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    target = tmp_path / "out" / "result.json"
    target.parent.mkdir()
    for name in (f".result.json.{os.getpid()}", ".result.json.unfinished", "result.json", ".result.json.journal.new"):
        (target.parent / name).symlink_to(precious)
    with exclusive(target):
        write_json(target, 1)
    assert precious.read_text() == "mine"
    target.with_name(".result.json.journal").symlink_to(precious)
    with pytest.raises(FileError, match="another user"), exclusive(target):
        pass
