"""The demo in pieces: its configuration, its chain of commands, its table and picture; `make demo` runs the whole."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK
import torch
from matplotlib.figure import Figure
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from rich.console import Console

from nnunetv2_conemos import cli, files, methods
from nnunetv2_conemos.annotations.table_file import read_table
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.declare import declare
from nnunetv2_conemos.datasets.phantom import ORGANS, write_phantom
from nnunetv2_conemos.demo import chain as demo
from nnunetv2_conemos.demo.report import dice_table, draw_bars, fullest_slice, picture
from nnunetv2_conemos.doorway import VARIABLE, doorway_folder, trainer_path
from nnunetv2_conemos.subprocesses import FOLDERS, CommandError
from nnunetv2_conemos.training import stock
from nnunetv2_conemos.training.variants import EPOCHS, variant

SHAPE = (16, 32, 32)
DICE = pd.DataFrame({"stock": [0.1, 0.0, 0.2, 0.0], "ours": [0.9, 0.8, 0.7, np.nan]}, index=list(ORGANS))


@pytest.fixture
def plans(preprocessed_phantom: Path) -> dict:
    return json.loads((preprocessed_phantom / "nnUNet_preprocessed/Dataset901_Phantom/nnUNetPlans.json").read_text())


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


@pytest.mark.parametrize(("patch", "stages"), [((8, 24, 24), 2), ((16, 20, 20), 3), ((24, 32, 32), 4)])
def test_the_small_configuration_builds_and_inherits_the_rest(plans: dict, patch: tuple[int, ...], stages: int):
    before = json.dumps(plans)
    manager = PlansManager(demo.with_small_configuration(plans, patch))
    assert json.dumps(plans) == before
    small, planned = (manager.get_configuration(name) for name in (demo.CONFIGURATION, "3d_fullres"))
    assert small.data_identifier == planned.data_identifier
    assert small.spacing == planned.spacing
    assert small.patch_size == list(patch)
    assert small.network_arch_init_kwargs["n_stages"] == stages
    network = nnUNetTrainer.build_network_architecture(manager, small, 1, 5, False)
    assert network(torch.zeros(1, 1, *patch)).shape == (1, 5, *patch)
    assert sum(p.numel() for p in network.parameters()) < 500_000


def test_both_arms_have_every_number_of_epochs():
    for epochs in EPOCHS:
        assert hasattr(stock, variant("nnUNetTrainer", epochs, adam=True))
        assert hasattr(methods, variant("ConditionalFiLMTrainer", epochs, adam=True))


def test_commands_see_the_folders_the_trainers_and_our_interpreter_first(tmp_path: Path):
    environment = demo.demo_environment(tmp_path, {"PATH": "/theirs", "nnUNet_raw": "/theirs", VARIABLE: "/theirs"})
    assert environment["nnUNet_raw"] == str(tmp_path / "nnUNet_raw")
    assert environment[VARIABLE] == trainer_path("/theirs", doorway_folder())
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/theirs"]


def test_a_command_logs_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chain = demo.Chain(tmp_path, 3, Console(width=120))
    chain.announce("first")
    log = chain.command("second", sys.executable, "-c", "import os; print(os.environ['nnUNet_raw'])")
    assert log.parent == tmp_path / "logs"
    assert log.read_text() == f"{tmp_path / 'nnUNet_raw'}\n"
    assert "1/3  first" in (printed := capsys.readouterr().out)
    assert "2/3  second" in printed


def test_a_failing_command_shows_the_end_of_its_log(tmp_path: Path):
    code = "import sys; [print('[/line]', n, flush=True) for n in range(40)]; sys.exit('out of memory')"
    with pytest.raises(CommandError, match=r"(?s)status 1; .*logs/01_.*line. 39.*out of memory") as caught:
        demo.Chain(tmp_path, 1, quiet()).command("fails", sys.executable, "-c", code)
    assert "[/line] 3\n" not in str(caught.value)


def test_a_failing_chain_ends_with_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(chain: demo.Chain, title: str, *command: str | Path) -> None:
        raise CommandError("`x` ended with status 3; its log [a] ends with\n[/b] no space left")

    monkeypatch.setattr(demo.Chain, "command", fail)
    assert cli.main(["demo", "-o", str(tmp_path / "new")]) == 1
    assert "[/b] no space left" in capsys.readouterr().out


def test_a_folder_of_data_is_never_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The subfolders of a demo are called as those of everybody who runs nnU-Net."""
    data = tmp_path / "nnUNet_raw" / "Dataset001_Mine"
    data.mkdir(parents=True)
    for more in ([], ["--overwrite"]):
        assert cli.main(["demo", "-o", str(tmp_path), *more]) == 2
        assert "no demo of this version wrote it. Name another" in capsys.readouterr().err
    assert data.is_dir()


def test_every_step_is_announced_and_both_arms_share_the_split(
    tmp_path: Path, plans: dict, monkeypatch: pytest.MonkeyPatch
):
    """The chain with the long commands replaced by what they leave behind."""
    folder, commands = tmp_path / "demo", []
    for name in FOLDERS:
        monkeypatch.setenv(name, str(folder / name))
    preprocessed = folder / "nnUNet_preprocessed" / demo.DATASET

    def leave_behind(chain: demo.Chain, title: str, *command: str | Path) -> None:
        chain.announce(title)
        commands.append(tuple(map(str, command)))
        if command[:2] == ("conemos", "declare"):
            declare(str(command[2]), read_table(Path(command[4])).annotated)
        if command[0] == "nnUNetv2_plan_and_preprocess":
            preprocessed.mkdir()
            raw_json = read_dataset_json(folder / "nnUNet_raw" / demo.DATASET)
            files.write_json(preprocessed / "dataset.json", raw_json)
            files.write_json(preprocessed / "nnUNetPlans.json", plans)
        if command[:2] == ("conemos", "evaluate"):
            Path(command[3]).mkdir(parents=True)
            per_label = {organ: {"dice": 0.5 if "Conditional" in str(command[3]) else None} for organ in ORGANS}
            files.write_json(Path(command[3]) / "evaluation.json", {"per_label": per_label})

    steps = []
    monkeypatch.setattr(demo.Chain, "command", leave_behind)
    monkeypatch.setattr(demo.Chain, "announce", lambda chain, title: steps.append(title))
    monkeypatch.setattr(demo, "picture", lambda *_: Figure())
    result = demo.run_demo(folder, epochs=1)
    assert (result.folder, result.picture) == (folder, folder / "demo.png")
    assert result.picture.is_file()
    dice = result.dice
    assert len(steps) == demo.STEPS
    trainings = [command for command in commands if command[0] == "nnUNetv2_train"]
    names = ["nnUNetTrainerAdam1en3_1epoch", "ConditionalFiLMTrainer_Adam1en3_1epoch"]
    assert [command[5] for command in trainings] == names
    assert len({command[:5] + command[6:] for command in trainings}) == 1
    splits = json.loads((preprocessed / "splits_final.json").read_text())
    assert {case.rpartition("_")[0] for case in splits[0]["val"]} == {"site_a", "site_b", "site_c"}
    assert demo.CONFIGURATION in json.loads((preprocessed / "nnUNetPlans.json").read_text())["configurations"]
    assert dice["conditional FiLM"].tolist() == [0.5] * 4
    assert dice["stock nnU-Net"].isna().all()


def test_the_table_shows_both_arms_and_their_mean():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(dice_table(DICE))
    printed = console.export_text()
    assert "│ liver       │  0.10 │ 0.90 │" in printed
    assert "│ mean        │  0.08 │ 0.80 │" in printed


def test_the_picture_shows_sites_truth_predictions_and_bars(tmp_path: Path):
    raw = tmp_path / "raw"
    write_phantom(raw, 1, 1, SHAPE)
    truth = SimpleITK.ReadImage(str(raw / "labelsTs/test_00.nii.gz"))
    arms = {"stock": tmp_path / "stock", "ours": tmp_path / "ours"}
    for arm, folder in arms.items():
        folder.mkdir()
        SimpleITK.WriteImage(truth if arm == "ours" else truth * 0, str(folder / "test_00.nii.gz"))
    figure = picture(raw, arms, DICE.fillna(0))
    assert [axes.get_title() for axes in figure.axes] == [
        "site_a", "site_b", "site_c", "image", "complete truth", "stock", "ours", "",
    ]  # fmt: skip
    overlays = {axes.get_title(): np.asarray(axes.images[1].get_array()) for axes in figure.axes[:-1]}
    assert np.array_equal(overlays["complete truth"], overlays["ours"])
    assert not overlays["stock"].any()
    assert not overlays["image"].any()
    for title, organs in {"site_a": 1, "site_b": 2, "site_c": 2, "complete truth": 4}.items():
        assert len(np.unique(overlays[title].reshape(-1, 4), axis=0)) == organs + 1
    figure.savefig(tmp_path / "demo.png")
    assert (tmp_path / "demo.png").stat().st_size > 10_000


def test_the_bars_have_the_heights_of_the_table():
    axes = Figure().subplots()
    draw_bars(axes, DICE.fillna(0))
    heights = [patch.get_height() for patch in axes.patches]  # type: ignore[attr-defined]
    assert heights == [*DICE["stock"], 0, *DICE["ours"].fillna(0), 0]  # a bar of height 0 makes the legend


def test_the_slice_shows_the_smallest_organ_too():
    truth = np.zeros((5, 8, 8), np.uint8)
    truth[0, :, :] = 1
    truth[3, 0, :4] = (1, 2, 3, 4)
    truth[4, 0, :3] = (2, 3, 4)
    assert fullest_slice(truth) == 3


def test_of_an_earlier_demo_only_our_files_are_replaced_and_only_if_asked(tmp_path: Path):
    demo.make_room(tmp_path / "new", overwrite=False)
    folder = tmp_path / "new"
    (folder / "thesis.txt").touch()
    (folder / "logs").mkdir()
    (folder / "demo.png").touch()
    with pytest.raises(FileExistsError, match="--overwrite"):
        demo.make_room(folder, overwrite=False)
    assert (folder / "demo.png").exists()
    demo.make_room(folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"thesis.txt", demo.MARKER}


def test_the_command_refuses_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "thesis.txt").touch()
    assert cli.main(["demo", "-o", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
