"""`conemos benchmark` on the phantom, training replaced: it is reported, goes on, grows, and keeps to its folder."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pandas as pd
import pytest
from benchmarks import StandIn
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunetv2_conemos import cli
from nnunetv2_conemos.benchmark import report
from nnunetv2_conemos.benchmark.ledger import code_hash
from nnunetv2_conemos.benchmark.plots.figures import draw_figures
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.doorway import VARIABLE
from nnunetv2_conemos.files import write_json

ARMS = ["vanilla", "ConditionalFiLMTrainer", "per-label", "completed"]
FIRST = "ConditionalFiLMTrainer__1epochs__seed0__fold0"


def test_every_arm_is_scored_and_reported(stand_in: StandIn, monkeypatch, capsys):
    monkeypatch.setattr(report, "draw_figures", draw_figures)
    monkeypatch.setenv(VARIABLE, "")
    assert stand_in.command("--arms", *ARMS, "--seeds", "0") == 0
    assert "Means over 2 test cases" in (printed := capsys.readouterr().out)
    assert f"Written: {stand_in.bench / 'runs.csv'}" in printed.replace("\n", " ")
    table = stand_in.runs["dice"]
    assert table["ConditionalFiLMTrainer", 0] == table["per-label", 0] == table["completed", 0] == 1
    assert table["vanilla", 0] == pytest.approx(0.25), "one of four organs"
    row = stand_in.runs.loc[("per-label", 0)]
    assert (row["networks"], row["steps"], row["parameters"], row["predict_s"]) == (4, 1000, 4000, 12.0)
    assert stand_in.runs.loc[("completed", 0)]["steps"] == 500, "teacher and student"
    for name in ("report.md", "report.html"):
        text = (stand_in.bench / name).read_text()
        assert all(arm in text for arm in ARMS)
    for name in ("dice", "costs", "overlays", "against_k"):
        assert (stand_in.bench / f"figures/{name}.png").stat().st_size > 5_000
    found = recursive_find_trainer_class_by_name("ConditionalFiLMTrainer")
    assert found.__name__ == "ConditionalFiLMTrainer", "the report builds networks, whatever the shell says"


def test_several_budgets_are_drawn_against_steps_and_rare_labels_against_their_cases(stand_in: StandIn, monkeypatch):
    monkeypatch.setattr(report, "draw_figures", draw_figures)
    content = read_dataset_json(stand_in.raw)
    content["sources"]["site_b"]["annotated"] = ["liver", "spleen", "gallbladder"]
    write_json(stand_in.raw / "dataset.json", content)
    stand_in.benchmark(*ARMS[:2], epochs=(1, 5))
    for name in ("curves", "annotated"):
        assert (stand_in.bench / f"figures/{name}.png").stat().st_size > 5_000
    assert "1250 steps (5 nnU-Net epochs) of SGD" in (stand_in.bench / "report.md").read_text()


def test_killed_and_started_again_it_goes_on_with_what_is_missing(stand_in: StandIn):
    stand_in.stop_at = f"{FIRST}_predictions"
    assert stand_in.command("--arms", *ARMS[:2], "--seeds", "0") == 130
    assert len(stand_in.runs) == 1
    before, stand_in.done, stand_in.stop_at = stand_in.done, [], None
    assert any("Conditional" in log and log.endswith("train") for log in before)
    stand_in.benchmark(*ARMS[:2])
    assert [log.partition("fold0_")[2] for log in stand_in.done][:2] == ["predictions", "evaluate"]
    stand_in.done = []
    stand_in.benchmark(*ARMS[:2], seeds=(0, 1))
    assert len(stand_in.runs) == 4
    assert not any("seed0" in log for log in stand_in.done)


def test_a_failing_arm_is_reported_and_stops_no_other_one(stand_in: StandIn):
    stand_in.fail_at = "vanilla__1epochs__seed0__fold0_Dataset900_Partial_train"
    assert stand_in.command("--arms", *ARMS[:2], "ceiling", "--seeds", "0") == 1
    status = stand_in.runs["status"]
    assert status["vanilla", 0] == "failed: status 1: torch.OutOfMemoryError: CUDA out of memory"
    assert "was not made by `conemos hide`" in status["ceiling", 0]
    assert status["ConditionalFiLMTrainer", 0] == "done"
    told = "**vanilla** (seed 0, fold 0, 1 epochs) failed: status 1: torch.OutOfMemoryError: CUDA out of memory"
    assert told in (stand_in.bench / "report.md").read_text()
    stand_in.fail_at = None
    assert not stand_in.benchmark(*ARMS[:2]).failed
    assert stand_in.runs["status"]["vanilla", 0] == "done", "tried again"


def test_overlays_show_a_training_that_is_done(stand_in: StandIn, monkeypatch):
    stand_in.fail_at = f"{FIRST}_evaluate"
    assert stand_in.benchmark(ARMS[1], seeds=(0, 1)).failed
    (stand_in.bench / "runs" / FIRST / "predictions/test_00.nii.gz").unlink()
    monkeypatch.setattr(report, "draw_figures", draw_figures)
    assert stand_in.command("--report") == 0


def test_cases_and_arms_may_be_named_by_numbers(stand_in: StandIn):
    for number in (0, 1):
        for old, new in ((f"imagesTs/test_{number:02}_0000", f"imagesTs/000{number}_0000"),
                         (f"labelsTs/test_{number:02}", f"labelsTs/000{number}")):  # fmt: skip
            (stand_in.raw / f"{old}.nii.gz").rename(stand_in.raw / f"{new}.nii.gz")
    arm = {"arm": "ConditionalFiLMTrainer", "name": "1"}
    stand_in.benchmark(arm)
    stand_in.done = []
    stand_in.benchmark(arm)
    assert not stand_in.done, "recognised as done"


def test_every_budget_has_its_tables_and_the_report_knows_all_arms(stand_in: StandIn):
    """Whatever the last call asked for; the arm of reference has a table of differences."""
    recipe, bench = stand_in.base / "recipe.yaml", stand_in.bench
    recipe.write_text("dataset: 901\nseeds: [0]\narms: [vanilla, {arm: ConditionalFiLMTrainer, reference: true}]\n")
    words = ("benchmark", str(recipe), "-o", str(bench), "-device", "cpu", "-np", "1")
    assert cli.main([*words, "--epochs", "1"]) == 0
    assert cli.main([*words, "--epochs", "5", "--arms", "vanilla", "DoDNetTrainer"]) == 0
    kept = (bench / "benchmark.yaml").read_text()
    assert cli.main(["benchmark", "901", "-o", str(bench), "--report", "-np", "1"]) == 0
    assert (bench / "benchmark.yaml").read_text() == kept
    for name in ("report.md", "report.html"):
        text = " ".join((bench / name).read_text().split())
        assert "Difference of mean Dice to DoDNetTrainer, paired by test case" in text, "of those with most arms"
        assert "Difference of mean Dice to ConditionalFiLMTrainer, paired by test case, after 250 steps" in text
        assert "of which 7 train in a fold" in text
    assert set(pd.read_csv(bench / "costs_against_k.csv")["trainer"]) == {
        "nnUNetTrainer", "ConditionalFiLMTrainer", "DoDNetTrainer",
    }  # fmt: skip
    assert set(pd.read_csv(bench / "runs.csv")["code"]) == {code_hash()}


def test_costs_against_the_number_of_labels_are_those_of_all_trainers(stand_in: StandIn):
    measured = []
    for arms in (ARMS[:1], ARMS[:1], ARMS[:2], ARMS[:2]):
        stand_in.benchmark(*arms)
        measured.append(stand_in.done.count("costs_against_k"))
    assert measured == [1, 1, 2, 2], "again where an arm was added, and only then"


def test_what_was_prepared_for_a_wrong_recipe_does_not_stay(stand_in: StandIn):
    def small(*patch: int) -> dict:
        return {"configuration": "s", "configurations": {"s": {"patch_size": patch}}}

    with pytest.raises(ValueError, match="patch"):
        stand_in.benchmark(**small(7, 7, 7))
    assert not stand_in.benchmark(**small(16, 32, 32)).failed


def test_refusals(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    """By the command: status 2, a message, and nothing trained."""

    def message(*words: str) -> str:
        assert stand_in.command(*words) == 2
        return capsys.readouterr().err

    assert "holds no benchmark.yaml: there is no benchmark to report" in message("--report")
    (stand_in.raw / "labelsTs/test_00.nii.gz").rename(stand_in.base / "kept")
    assert "no label map of test_00" in message()
    assert not stand_in.bench.exists(), "before anything is written"
    (stand_in.base / "kept").rename(stand_in.raw / "labelsTs/test_00.nii.gz")
    stand_in.bench.mkdir()
    (stand_in.bench / "thesis.txt").touch()
    assert "is not empty and holds no benchmark.yaml" in message()
    (stand_in.bench / "thesis.txt").unlink()
    with (stand_in.bench / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        (stand_in.bench / "benchmark.yaml").touch()
        assert "is being written by" in message()
    (stand_in.bench / "benchmark.yaml").unlink()
    (stand_in.bench / ".lock").unlink(missing_ok=True)
    assert "fold 9: expected one of the 5 folds" in message("--folds", "9")
    assert stand_in.done == ["plan"]


def test_a_recipe_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["benchmark", str(tmp_path / "no.yaml"), "-o", str(tmp_path / "bench")]) == 2
    assert "there is no recipe" in capsys.readouterr().err


def test_the_tables_of_a_benchmark_suffice_for_its_report(stand_in: StandIn, tmp_path: Path, monkeypatch):
    """As they are published: without dataset, predictions and models."""
    stand_in.benchmark(*ARMS[:2], epochs=(1, 5))
    published = tmp_path / "published"
    published.mkdir()
    for name in ("benchmark.yaml", "runs.csv", "cases.csv"):
        shutil.copy(stand_in.bench / name, published)
    monkeypatch.setattr(report, "draw_figures", None)
    assert cli.main(["benchmark", "none", "-o", str(published), "--report"]) == 0
    whole, again = ((folder / "report.md").read_text() for folder in (stand_in.bench, published))
    assert (
        whole[whole.index("## Means") : whole.index("## Figures")]
        == again[again.index("## Means") : again.index("## Figures")]
    )
    assert (published / "figures" / "curves.png").stat().st_size > 5_000
    assert "](figures/curves.png)" in again
