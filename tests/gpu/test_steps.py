"""The script for a GPU goes on whatever happens, and ends in time."""

import os
import sys
import time
from pathlib import Path

import pytest

from gpu.hippocampus import dice_table, longest
from gpu.steps import Run, Step, program


def shell(line: str) -> list[str]:
    return ["sh", "-c", line]


def make_run(folder: Path, seconds: float = 60) -> Run:
    return Run(folder, seconds, dict(os.environ))


def test_a_failed_command_is_named_and_the_others_go_on(tmp_path: Path):
    run = make_run(tmp_path)
    run.do(Step("two at once", 20, {"bad": shell("echo why; exit 3"), "good": shell("echo fine")}))
    run.do(Step("after them", 20, {"later": shell("echo done")}))
    assert run.failed == ["two at once: bad ended with status 3"]
    assert [run.tail(name, 1) for name in ("good", "later")] == ["fine", "done"]
    assert "why" in (tmp_path / "report.txt").read_text()


def test_commands_are_ended_with_all_that_they_started(tmp_path: Path):
    run, begin = make_run(tmp_path), time.monotonic()
    run.do(Step("too long", 1, {"slow": shell(f"(sleep 4; touch {tmp_path}/alive) & sleep 60")}))
    assert run.failed == ["too long: slow was ended after 1 s, its limit"]
    assert time.monotonic() - begin < 30
    time.sleep(4)
    assert not (tmp_path / "alive").exists()


def test_nothing_begins_when_the_time_is_over(tmp_path: Path):
    run = make_run(tmp_path, 0)
    run.do(Step("late", 10, {"late": shell(f"touch {tmp_path}/begun")}))
    assert run.failed == ["late: not begun, the time is over"]
    assert not (tmp_path / "begun").exists()


def test_entry_points_get_their_words(tmp_path: Path):
    run = make_run(tmp_path)
    run.do(Step("exit", 60, {"exit": program("sys", "exit", "unused")}))
    assert not run.failed
    assert program("a.b", "c", 1, Path("x"))[0::3] == [sys.executable, "1"]


@pytest.mark.parametrize(("left", "epochs"), [(100, None), (250, 10), (500, 20)])
def test_the_longest_training_that_fits_is_chosen(left: float, epochs: int | None):
    assert longest(5, 100, left) == epochs


def test_the_table_holds_the_arms_that_were_scored(tmp_path: Path):
    scores = tmp_path / "scores1" / "scored"
    scores.mkdir(parents=True)
    (scores / "evaluation.csv").write_text("case,label,dice\na,x,0.5\nb,x,0.7\na,y,0.2\nb,y,\n")
    table = dice_table(make_run(tmp_path), 1, {"scored": "checkpoint_final.pth", "untrained": ""})
    assert table.split() == [
        "arm",
        "x",
        "y",
        "mean",
        "checkpoint",
        *["scored", "0.600", "0.200", "0.400", "checkpoint_final.pth"],
    ]
