"""The frame of the command line: every command has its module, errors are sentences, `env` stays quick."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nnunetv2_conemos import cli
from nnunetv2_conemos.commands import env
from nnunetv2_conemos.doorway import PACKAGE, VARIABLE


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: conemos {command} ")
    assert cli.sentence(cli.COMMANDS[command]).split()[0] in printed


def test_help_says_what_it_is_for_and_lists_all_commands_by_step(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    printed = capsys.readouterr().out
    assert "Train one nnU-Net v2 network" in printed
    lines = printed.splitlines()
    for step, commands in cli.STEPS.items():
        below = lines[lines.index(f"{step}:") + 1 :][: len(commands)]
        assert [line.split(maxsplit=1) for line in below] == [list(entry) for entry in commands.items()]


def test_every_module_of_commands_is_a_command():
    modules = {file.stem.rstrip("_") for file in (PACKAGE / "commands").glob("*.py")} - {"__init", "arguments"}
    assert modules == cli.COMMANDS.keys()


@pytest.mark.parametrize("argv", [[], ["no_such_command"], ["declare"], ["env", "surplus"]])
def test_wrong_words_end_with_status_2(argv: list[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, NotImplementedError])
def test_bad_input_is_one_message_without_a_traceback(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(_: object) -> None:
        raise error("case 'x': expected a, found b. Do c.")

    monkeypatch.setattr(env, "run", fail)
    assert cli.main(["env"]) == 2
    assert capsys.readouterr().err == "conemos env: case 'x': expected a, found b. Do c.\n"


def test_env_imports_neither_torch_nor_nnunet():
    """It runs in every shell start-up; also, nothing but the line may reach standard output."""
    code = (
        "import sys; from nnunetv2_conemos import cli; cli.main(['env']); "
        "sys.exit(bool({'torch', 'nnunetv2', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"export {VARIABLE}=")
    assert done.stdout.count("\n") == 1


FORKS = """
import os, signal, time
from nnunetv2_conemos.signals import ended_by_signals
with ended_by_signals('test'):
    for _ in range(300):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline, "SIGTERM was lost: a pool would wait for this process for ever"
            time.sleep(0.0005)
        assert os.WTERMSIG(ended[1]) == signal.SIGTERM
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_process_that_is_ended_while_it_is_forked_ends():
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
