"""`conemos benchmark` on the phantom. Commands that take long are replaced by what they leave behind."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from raw_worlds import read_nifti, write_nifti

from nnunetv2_conemos import cli
from nnunetv2_conemos.benchmark.arms import joined
from nnunetv2_conemos.benchmark.config import Arm, Run
from nnunetv2_conemos.benchmark.ledger import Ledger, code_hash
from nnunetv2_conemos.benchmark.plots.overlays import median_and_worst, shown_values
from nnunetv2_conemos.benchmark.run import locked
from nnunetv2_conemos.benchmark.workspace import Workspace
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.doorway import VARIABLE
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.subprocesses import CommandError

TAUGHT = {"vanilla": ["liver"], "per-label": None}  # arm -> labels that its stand-in finds; None: all
ARMS = ["vanilla", "ConditionalFiLMTrainer", "per-label", "completed"]


class StandIn:
    """Does at once what the commands of a benchmark take hours for; evaluation is the real one."""

    def __init__(self, base: Path):
        self.base, self.done, self.trained = base, [], []
        self.fail_at: str | None = None
        self.stop_at: str | None = None

    def __call__(self, place: Workspace, log: str, *words: str | Path, variables: dict | None = None) -> None:
        text = " ".join(map(str, words))
        self.done.append(log)
        if self.stop_at and self.stop_at in log:
            raise KeyboardInterrupt
        if self.fail_at and self.fail_at in log:
            log = "Epoch 3\ntorch.OutOfMemoryError: CUDA out of memory\nConnectionResetError: a worker's\nexit\n"
            raise CommandError(f"`{text}` ended with status 1; log ends with\nexit", log)
        where = variables or {}
        if words[0] == "nnUNetv2_plan_and_preprocess":
            folder = place.preprocessed / "Dataset900_Partial"
            folder.mkdir()
            template = self.base / "nnUNet_preprocessed/Dataset901_Phantom"
            plans = json.loads((template / "nnUNetPlans.json").read_text())
            shutil.copy(template / "dataset_fingerprint.json", folder)
            write_json(folder / "nnUNetPlans.json", {**plans, "dataset_name": folder.name})
            shutil.copy(place.raw / folder.name / "dataset.json", folder)
        elif words[:2] == ("conemos", "complete"):
            target = Path(where["nnUNet_raw"]) / "Dataset902_Completed"
            shutil.copytree(place.raw / "Dataset900_Partial", target)
            content = read_dataset_json(target)
            write_json(target / "dataset.json", {k: v for k, v in content.items() if k != "sources"})
        elif words[:2] in (("conemos", "evaluate"), ("conemos", "hide")):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("nnUNet_raw", str(place.raw))
                assert cli.main([*text.split()[1:]]) == 0
        elif "nnunetv2_conemos.benchmark.scaling" in words:
            pd.DataFrame({"trainer": words[8:], "labels": 2, "step_s": 0.1, "predict_s": 0.2}).to_csv(
                words[3], index=False
            )
        elif "train" in words:
            self.trained.append((words[words.index("-tr") + 1], words[7]))
            needed = Path(where["nnUNet_preprocessed"]) / str(words[6])
            for name in ("nnUNetPlans.json", "dataset.json", "dataset_fingerprint.json"):
                assert (needed / name).is_file(), "nnU-Net wants it"
            assert words[8] == "all" or (needed / "splits_final.json").is_file()
            write_json(Path(words[3]), {"step_s": 0.1, "parameters": 1000, "train_peak_mib": 10.0})
            fold = Path(words[3]).with_name(f"fold_{words[8]}")
            fold.mkdir()
            shutil.copy(needed / "nnUNetPlans.json", fold.parent / "plans.json")
        elif "predict" in words:
            self.predict(list(map(str, words)))
            write_json(Path(words[3]), {"predict_s": 3.0, "predict_peak_mib": 20.0})

    def predict(self, words: list[str]) -> None:
        """The truth, where the arm learned it."""
        option = dict(pairwise(words))
        output, images = Path(option["-o"]), Path(option["-i"])
        output.mkdir(parents=True)
        truth = images.parent / images.name.replace("images", "labels")
        dataset_json = read_dataset_json(self.base / "nnUNet_raw/Dataset901_Phantom")
        arm = output.parent.name.partition("__")[0]
        found = TAUGHT.get(arm) or list(dataset_json["labels"])
        only = int(output.name.partition("_")[2] or 0)
        for file in truth.glob("*.nii.gz"):
            labels = read_nifti(file)
            if only:
                own = (labels == only).astype(np.float32)
                np.savez(output / f"{file.name[:-7]}.npz", probabilities=np.stack([1 - own, own]))
                labels = own.astype(np.uint8)
            kept = np.isin(labels, [dataset_json["labels"][name] for name in found]) | bool(only)
            write_nifti(output / file.name, (labels * kept).astype(np.uint8), spacing=spacing_of(file))


def spacing_of(file: Path) -> tuple[float, ...]:
    import SimpleITK

    return SimpleITK.ReadImage(str(file)).GetSpacing()


@pytest.fixture
def stand_in(preprocessed_phantom: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(preprocessed_phantom)
    monkeypatch.setattr(Workspace, "command", lambda place, *a, **b: stand_in(place, *a, **b))
    return stand_in


def benchmark(stand_in: StandIn, *more: str) -> int:
    words = ("901", "-o", str(stand_in.base / "bench"), "--epochs", "1", "-device", "cpu", "-np", "1")
    return cli.main(["benchmark", *words, *more])


def runs(stand_in: StandIn) -> pd.DataFrame:
    return pd.read_csv(stand_in.base / "bench/runs.csv").set_index(["arm", "seed"])


def trained(stand_in: StandIn) -> list[str]:
    """Datasets, in the order in which they were trained on."""
    return [log.partition("foldall_")[2].removesuffix("_train") for log in stand_in.done if log.endswith("_train")]


def test_every_arm_is_scored_and_reported(stand_in: StandIn):
    assert benchmark(stand_in, "--arms", *ARMS, "--seeds", "0") == 0
    table = runs(stand_in)["dice"]
    assert table["ConditionalFiLMTrainer", 0] == table["per-label", 0] == table["completed", 0] == 1
    assert table["vanilla", 0] == pytest.approx(0.25), "one of four organs"
    row = runs(stand_in).loc[("per-label", 0)]
    assert (row["networks"], row["steps"], row["parameters"], row["predict_s"]) == (4, 1000, 4000, 12.0)
    assert runs(stand_in).loc[("completed", 0)]["steps"] == 500, "teacher and student"
    for name in ("report.md", "report.html"):
        text = (stand_in.base / "bench" / name).read_text()
        for arm in ARMS:
            assert arm in text
    for name in ("dice", "costs", "overlays", "against_k"):
        assert (stand_in.base / f"bench/figures/{name}.png").stat().st_size > 5_000


def test_unlabelled_cases_are_left_out_where_only_annotated_ones_are_asked_for(stand_in: StandIn):
    file = stand_in.base / "nnUNet_raw/Dataset901_Phantom/dataset.json"
    content = json.loads(file.read_text())
    content["sources"]["site_c"]["annotated"] = []
    write_json(file, content)
    arms = ("UniMOSTrainer", "annotated-only", "annotated-only:UniMOSTrainer")
    assert benchmark(stand_in, "--arms", *arms, "--seeds", "0", "--folds", "all") == 0
    datasets = [
        (trainer.partition("_")[0], log) for (trainer, _), log in zip(stand_in.trained, trained(stand_in), strict=True)
    ]
    assert datasets == [
        ("UniMOSTrainer", "Dataset900_Partial"),
        ("nnUNetTrainer", "Dataset903_Annotated"),
        ("UniMOSTrainer", "Dataset903_Annotated"),
    ]
    left = read_dataset_json(stand_in.base / "bench/nnUNet_raw/Dataset903_Annotated")
    assert not any(case.startswith("site_c") for case in left["dataset"])
    assert set(left["sources"]) == set(content["sources"]) - {"site_c"}
    stand_in.done = []
    assert benchmark(stand_in, "--arms", *arms, "--seeds", "0", "--folds", "all") == 0
    assert not stand_in.done, "recognised as done"
    assert benchmark(stand_in, "--arms", arms[0], "--seeds", "0", "--folds", "all", "0") == 0
    assert list(runs(stand_in)["fold"]) == ["all"] * 3 + ["0"]


def test_without_unlabelled_cases_there_is_nothing_to_leave_out(stand_in: StandIn):
    assert benchmark(stand_in, "--arms", "vanilla", "annotated-only", "--seeds", "0") == 1
    assert "every training case is annotated for something" in runs(stand_in)["status"]["annotated-only", 0]


def test_tags_go_with_their_cases_and_stay_away_from_those_who_do_not_learn_from_them(stand_in: StandIn):
    raw = stand_in.base / "nnUNet_raw/Dataset901_Phantom"
    content = read_dataset_json(raw)
    names = [name for name in content["labels"] if name != "background"]
    content["sources"]["site_c"] |= {"annotated": [], "tagged": names}
    write_json(raw / "dataset.json", content | {"sources": {"every": {"cases": ["*"], "annotated": names}}})
    assert cli.main(["hide", "901", "-o", "Dataset902_Tagged", "--per-case", "1", "--tags", "z", "-np", "1"]) == 0
    file = raw.parent / "Dataset902_Tagged/dataset.json"
    tagged = json.loads(file.read_text())
    gold = next(c for c in tagged["tags"]["cases"] if read_nifti(file.parent / f"labelsTr/{c}.nii.gz").any())
    source = next(name for name, entry in tagged["sources"].items() if gold in entry["cases"])
    tagged["sources"][source]["cases"].remove(gold)
    tagged["sources"]["gold"] = {"cases": [gold], "annotated": names}
    del tagged["tags"]["cases"][gold]
    write_json(file, tagged)
    recipe, bench = stand_in.base / "recipe.yaml", stand_in.base / "bench"
    recipe.write_text(
        "{dataset: Dataset902_Tagged, hold_out: 1, folds: [all], epochs: [1], seeds: [0],"
        " arms: [ConditionalFiLMTrainer, per-label]}"
    )
    assert cli.main(["benchmark", str(recipe), "-o", str(bench), "-device", "cpu", "-np", "1"]) == 0
    partial = read_dataset_json(bench / "nnUNet_raw/Dataset900_Partial")
    assert partial["tags"]["cases"] == tagged["tags"]["cases"]
    assert gold not in partial["dataset"]
    assert not {"tags", "sources"} & set(read_dataset_json(bench / "nnUNet_raw/Dataset101_Only_1"))


def test_a_recipe_turns_hidden_labels_into_tags(stand_in: StandIn):
    raw = stand_in.base / "nnUNet_raw/Dataset901_Phantom"
    content = read_dataset_json(raw)
    write_json(raw / "dataset.json", {key: value for key, value in content.items() if key != "sources"})
    recipe, bench = stand_in.base / "recipe.yaml", stand_in.base / "bench"
    arms = "[CMERTrainer, 'ceiling:ConditionalFiLMTrainer', 'annotated-only:ConditionalFiLMTrainer']"
    hide = "hide: {per_case: 1, unlabelled: 0.5, tags: z}\n"
    recipe.write_text(f"dataset: '901'\nfolds: [all]\nepochs: [1]\nseeds: [0]\n{hide}arms: {arms}\n")
    assert cli.main(["benchmark", str(recipe), "-o", str(bench), "-device", "cpu", "-np", "1"]) == 0
    partial = read_dataset_json(bench / "nnUNet_raw/Dataset900_Partial")
    assert set(partial["tags"]["cases"]) == set(partial["dataset"])
    for name in ("Dataset901_Complete", "Dataset903_Annotated"):
        other = read_dataset_json(bench / "nnUNet_raw" / name)
        assert "tags" not in other
        assert not any("tagged" in source for source in other["sources"].values())


def test_labels_of_one_network_each_are_trained_on_their_own_cases(stand_in: StandIn):
    assert benchmark(stand_in, "--arms", "per-label", "--seeds", "0") == 0
    raw = stand_in.base / "bench/nnUNet_raw"
    only = read_dataset_json(raw / "Dataset101_Only_1")
    assert only["labels"] == {"background": 0, "liver": 1}
    assert sorted(only["dataset"]) == ["site_a_00", "site_a_01", "site_a_02"]
    second = read_nifti(raw / "Dataset102_Only_2/labelsTr/site_b_00.nii.gz")
    whole = read_nifti(stand_in.base / "nnUNet_raw/Dataset901_Phantom/labelsTr/site_b_00.nii.gz")
    assert np.array_equal(second, whole == 2)
    splits = json.loads((stand_in.base / "bench/nnUNet_preprocessed/Dataset101_Only_1/splits_final.json").read_text())
    assert set(splits[0]["train"] + splits[0]["val"]) == set(only["dataset"])
    third = json.loads((stand_in.base / "bench/nnUNet_preprocessed/Dataset103_Only_3/splits_final.json").read_text())
    assert all(fold["val"] for fold in third), "also where no case of the label validates"


def test_killed_and_started_again_it_goes_on_with_what_is_missing(stand_in: StandIn):
    stand_in.stop_at = "ConditionalFiLMTrainer__1epochs__seed0__fold0_predictions"
    assert benchmark(stand_in, "--arms", *ARMS[:2], "--seeds", "0") == 130
    assert len(runs(stand_in)) == 1
    before, stand_in.done, stand_in.stop_at = stand_in.done, [], None
    assert any("Conditional" in log and log.endswith("train") for log in before)
    assert benchmark(stand_in, "--arms", *ARMS[:2], "--seeds", "0") == 0
    assert [log.partition("fold0_")[2] for log in stand_in.done][:2] == ["predictions", "evaluate"]
    stand_in.done = []
    assert benchmark(stand_in, "--arms", *ARMS[:2], "--seeds", "0", "1") == 0
    assert len(runs(stand_in)) == 4
    assert not any("seed0" in log for log in stand_in.done)


def test_a_failing_arm_is_reported_and_stops_no_other_one(stand_in: StandIn):
    stand_in.fail_at = "vanilla__1epochs__seed0__fold0_Dataset900_Partial_train"
    assert benchmark(stand_in, "--arms", *ARMS[:2], "ceiling", "--seeds", "0") == 1
    status = runs(stand_in)["status"]
    assert status["vanilla", 0] == "failed: status 1: torch.OutOfMemoryError: CUDA out of memory"
    assert "was not made by `conemos hide`" in status["ceiling", 0]
    assert status["ConditionalFiLMTrainer", 0] == "done"
    assert (
        "did not run: failed: status 1: torch.OutOfMemoryError: CUDA out of memory"
        in (stand_in.base / "bench/report.md").read_text()
    )
    stand_in.fail_at = None
    assert benchmark(stand_in, "--arms", *ARMS[:2], "--seeds", "0") == 0
    assert runs(stand_in)["status"]["vanilla", 0] == "done", "tried again"


def test_several_budgets_are_drawn_against_steps_and_rare_labels_against_their_cases(stand_in: StandIn):
    file = stand_in.base / "nnUNet_raw/Dataset901_Phantom/dataset.json"
    content = json.loads(file.read_text())
    content["sources"]["site_b"]["annotated"] = ["liver", "spleen", "gallbladder"]
    write_json(file, content)
    assert benchmark(stand_in, "--arms", *ARMS[:2], "--seeds", "0", "--epochs", "1", "5") == 0
    for name in ("steps", "annotated"):
        assert (stand_in.base / f"bench/figures/{name}.png").stat().st_size > 5_000
    assert "1250 steps (5 nnU-Net epochs) of SGD" in (stand_in.base / "bench/report.md").read_text()


def test_missing_truth_is_an_error_before_anything_is_written(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    (stand_in.base / "nnUNet_raw/Dataset901_Phantom/labelsTs/test_00.nii.gz").unlink()
    assert benchmark(stand_in) == 2
    assert "no label map of test_00" in capsys.readouterr().err
    assert not (stand_in.base / "bench").exists()


def test_complete_labels_are_refused_unless_some_are_hidden(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    file = stand_in.base / "nnUNet_raw/Dataset901_Phantom/dataset.json"
    content = json.loads(file.read_text())
    write_json(file, {key: value for key, value in content.items() if key != "sources"})
    assert benchmark(stand_in) == 2
    assert "all labels are annotated in every case, so there is nothing to compare" in capsys.readouterr().err
    recipe = stand_in.base / "recipe.yaml"
    recipe.write_text("dataset: '901'\nhold_out: 99\nhide: {per_case: 1}\n")
    assert cli.main(["benchmark", str(recipe), "-o", str(stand_in.base / "bench")]) == 2
    assert "hold_out 99: expected that many" in capsys.readouterr().err


def test_a_folder_with_other_things_in_it_is_refused(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    (stand_in.base / "bench").mkdir()
    (stand_in.base / "bench/thesis.txt").touch()
    assert benchmark(stand_in) == 2
    assert "is not empty and holds no benchmark.yaml" in capsys.readouterr().err


def test_training_cases_are_no_test_cases(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    raw, recipe = stand_in.base / "nnUNet_raw/Dataset901_Phantom", stand_in.base / "recipe.yaml"
    recipe.write_text(f"dataset: 901\ntest: {{images: {raw}/imagesTr, labels: {raw}/labelsTr}}\n")
    assert cli.main(["benchmark", str(recipe), "-o", str(stand_in.base / "bench"), "-np", "1"]) == 2
    assert "found training case(s) site_a_00, site_a_01" in capsys.readouterr().err
    for file in (raw / "imagesTs").glob("*.nii.gz"):
        shutil.copy(raw / "imagesTr/site_a_00_0000.nii.gz", file)
        file.unlink()
        file.symlink_to(raw / "imagesTr/site_a_00_0000.nii.gz")
    assert benchmark(stand_in) == 2
    assert "found training case(s) test_00, test_01" in capsys.readouterr().err, "by another name"


def test_truth_without_any_label_is_found_before_anything_trains(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    for file in (stand_in.base / "nnUNet_raw/Dataset901_Phantom/labelsTs").iterdir():
        write_nifti(file, np.zeros_like(read_nifti(file)), spacing_of(file))
    assert benchmark(stand_in) == 2
    assert "labelsTs: no test case shows any label" in capsys.readouterr().err
    assert not stand_in.done


def test_unusable_truth_is_found_before_anything_trains(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    file = stand_in.base / "nnUNet_raw/Dataset901_Phantom/labelsTs/test_01.nii.gz"
    write_nifti(file, np.full_like(read_nifti(file), 77), spacing_of(file))
    assert benchmark(stand_in) == 2
    assert "test_01.nii.gz: expected the label values of liver" in capsys.readouterr().err
    assert not stand_in.done


def test_cases_and_arms_may_be_named_by_numbers(stand_in: StandIn):
    raw = stand_in.base / "nnUNet_raw/Dataset901_Phantom"
    for number in (0, 1):
        (raw / f"imagesTs/test_{number:02}_0000.nii.gz").rename(raw / f"imagesTs/000{number}_0000.nii.gz")
        (raw / f"labelsTs/test_{number:02}.nii.gz").rename(raw / f"labelsTs/000{number}.nii.gz")
    recipe = stand_in.base / "recipe.yaml"
    recipe.write_text("dataset: 901\nseeds: [0]\nepochs: [1]\narms: [{arm: ConditionalFiLMTrainer, name: '1'}]\n")
    words = ["benchmark", str(recipe), "-o", str(stand_in.base / "bench"), "-device", "cpu", "-np", "1"]
    assert cli.main(words) == 0
    stand_in.done = []
    assert cli.main(words) == 0
    assert not stand_in.done, "recognised as done"


def test_the_teacher_and_an_arm_of_the_same_trainer_with_other_plans_are_two_trainings(stand_in: StandIn):
    recipe = stand_in.base / "recipe.yaml"
    arms = "[completed, {arm: ConditionalFiLMTrainer, name: ConditionalFiLMTrainer, configuration: 2d}]"
    recipe.write_text(f"dataset: 901\nseeds: [0]\nepochs: [1]\narms: {arms}\n")
    assert cli.main(["benchmark", str(recipe), "-o", str(stand_in.base / "bench"), "-device", "cpu", "-np", "1"]) == 0
    ours = [configuration for trainer, configuration in stand_in.trained if trainer.startswith("Conditional")]
    assert sorted(ours) == ["2d", "3d_fullres"]


def test_overlays_show_a_training_that_is_done(stand_in: StandIn):
    stand_in.fail_at = "ConditionalFiLMTrainer__1epochs__seed0__fold0_evaluate"
    assert benchmark(stand_in, "--arms", ARMS[1], "--seeds", "0", "1") == 1
    (stand_in.base / "bench/runs/ConditionalFiLMTrainer__1epochs__seed0__fold0/predictions/test_00.nii.gz").unlink()
    assert benchmark(stand_in, "--arms", ARMS[1], "--seeds", "0", "1", "--report") == 0


def test_an_arm_may_predict_with_the_network_of_another(stand_in: StandIn):
    """Same weights, other options of the method at prediction."""
    recipe, bench = stand_in.base / "recipe.yaml", stand_in.base / "bench"
    recipe.write_text(
        "dataset: 901\nseeds: [0]\nepochs: [1]\nconfiguration: small\n"
        "configurations: {small: {base: 2d}, singly: {base: small, conemos: {one_by_one: true}}}\n"
        "arms: [{arm: LabelSetFiLMTrainer, prediction: singly}, LabelSetFiLMTrainer]\n"
    )
    assert cli.main(["benchmark", str(recipe), "-o", str(bench), "-device", "cpu", "-np", "1"]) == 0
    assert [name for name, _ in stand_in.trained] == ["LabelSetFiLMTrainer_1epoch"], "once"
    inner = "nnUNet_results/Dataset900_Partial/LabelSetFiLMTrainer_1epoch__nnUNetPlans__small"
    whole, singly = (
        bench / "runs" / f"LabelSetFiLMTrainer{more}__1epochs__seed0__fold0" / inner for more in ("", "_singly")
    )
    assert (singly / "fold_0").resolve() == whole / "fold_0"
    queried = [json.loads((folder / "plans.json").read_text())["configurations"]["small"] for folder in (whole, singly)]
    assert queried[1].pop("conemos") == {"one_by_one": True}
    assert queried[0] == queried[1]
    assert set(runs(stand_in).index) == {("LabelSetFiLMTrainer singly", 0), ("LabelSetFiLMTrainer", 0)}


def test_every_budget_has_its_tables_and_the_report_knows_all_arms(stand_in: StandIn):
    """Whatever the last call asked for; the arm of reference has a table of differences."""
    recipe, bench = stand_in.base / "recipe.yaml", stand_in.base / "bench"
    recipe.write_text("dataset: 901\nseeds: [0]\narms: [vanilla, {arm: ConditionalFiLMTrainer, reference: true}]\n")
    words = ("benchmark", str(recipe), "-o", str(bench), "-device", "cpu", "-np", "1")
    assert cli.main([*words, "--epochs", "1"]) == 0
    assert cli.main([*words, "--epochs", "5", "--arms", "vanilla", "DoDNetTrainer"]) == 0
    kept = (bench / "benchmark.yaml").read_text()
    assert cli.main(["benchmark", "901", "-o", str(bench), "--report", "-np", "2"]) == 0
    assert (bench / "benchmark.yaml").read_text() == kept
    for name in ("report.md", "report.html"):
        report = (bench / name).read_text()
        assert "Difference of mean Dice to DoDNetTrainer, paired by test case" in report, "of those with most arms"
        assert "Difference of mean Dice to ConditionalFiLMTrainer, paired by test case, after 250 steps" in report
        assert "9 cases, of which 7 train in a fold" in report
    assert set(pd.read_csv(bench / "costs_against_k.csv")["trainer"]) == {
        "nnUNetTrainer", "ConditionalFiLMTrainer", "DoDNetTrainer",
    }  # fmt: skip
    assert set(pd.read_csv(bench / "runs.csv")["code"]) == {code_hash()}


def test_an_arm_may_have_another_optimiser(stand_in: StandIn):
    recipe = stand_in.base / "recipe.yaml"
    recipe.write_text("dataset: 901\noptimiser: AdamW\narms: [vanilla, {arm: vanilla, optimiser: SGD}]\nseeds: [0]\n")
    words = (
        "benchmark",
        str(recipe),
        "-o",
        str(stand_in.base / "bench"),
        "--epochs",
        "1",
        "-device",
        "cpu",
        "-np",
        "1",
    )
    assert cli.main([*words]) == 0
    assert [name for name, _ in stand_in.trained] == ["nnUNetTrainerAdam1en3_1epoch", "nnUNetTrainer_1epoch"]
    for name in ("report.md", "report.html"):
        assert "of AdamW (vanilla SGD: SGD), plans" in (stand_in.base / "bench" / name).read_text()


def test_the_trainers_are_found_whatever_the_shell_says(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch):
    """The report builds networks in this process."""
    monkeypatch.setenv(VARIABLE, "")
    assert benchmark(stand_in, "--arms", ARMS[0], "--seeds", "0") == 0
    assert recursive_find_trainer_class_by_name("ConditionalFiLMTrainer").__name__ == "ConditionalFiLMTrainer"


def test_costs_against_the_number_of_labels_are_those_of_all_trainers(stand_in: StandIn):
    measured = []
    for arms in (ARMS[:1], ARMS[:1], ARMS[:2], ARMS[:2]):
        assert benchmark(stand_in, "--arms", *arms, "--seeds", "0") == 0
        measured.append(stand_in.done.count("costs_against_k"))
    assert measured == [1, 1, 2, 2], "again where an arm was added, and only then"


def test_labels_that_a_case_lacks_are_in_no_mean_of_the_table(tmp_path: Path):
    """As in the report: neither a right nothing nor a false find counts."""
    pairs = [("a", 0.8, "scored"), ("b", 0.0, "reference empty"), ("c", np.nan, "both empty"), ("d", 0.4, "scored")]
    rows = [
        {"case": case, "label": "liver", "dice": dice, "nsd": dice, "hd95_mm": 1.0, "status": status, "source": "s"}
        for case, dice, status in pairs
    ]
    ledger, run = Ledger(tmp_path), Run(Arm(arm="vanilla"), 1, 0, 0)
    ledger.enter(run, pd.DataFrame(rows), {})
    assert ledger.runs.loc[0, ["dice", "dice liver"]].tolist() == pytest.approx([0.6, 0.6])
    assert len(ledger.cases) == 4, "the pairs themselves are all there"


def test_pictures_are_of_different_cases_and_show_what_nnunet_writes():
    dice = pd.Series({"a": 0.5, "b": np.nan, "c": 0.9, "d": 0.1})
    assert list(median_and_worst(dice).items()) == [("a", "median, Dice 0.50"), ("d", "worst, Dice 0.10")]
    assert median_and_worst(dice[["c"]]) == {"c": "Dice 0.90"}
    labels = {"background": 0, "whole": [1, 2], "core": 1, "ignore": 3}
    assert shown_values({"labels": labels, "regions_class_order": [2, 1]}) == {"whole": 2, "core": 1, "ignore": 3}
    assert shown_values({"labels": {"background": 0, "b": 2, "a": 1}}) == {"b": 2, "a": 1}


def test_what_was_prepared_for_a_wrong_recipe_does_not_stay(stand_in: StandIn):
    recipe = stand_in.base / "recipe.yaml"
    words = ["benchmark", str(recipe), "-o", str(stand_in.base / "bench"), "-device", "cpu", "-np", "1"]
    text = "dataset: 901\nseeds: [0]\nepochs: [1]\narms: [vanilla]\nconfiguration: s\n"
    text += "configurations: {s: {patch_size: %s}}"
    recipe.write_text(text % "[7, 7, 7]")
    assert cli.main(words) == 2
    recipe.write_text(text % "[16, 32, 32]")
    assert cli.main(words) == 0


def test_a_second_benchmark_in_the_same_folder_is_refused(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    with locked(stand_in.base / "bench"):
        (stand_in.base / "bench/benchmark.yaml").touch()
        assert benchmark(stand_in) == 2
    assert "a benchmark runs here" in capsys.readouterr().err


def test_folds_that_the_split_lacks_are_refused(stand_in: StandIn, capsys: pytest.CaptureFixture[str]):
    assert benchmark(stand_in, "--folds", "9") == 2
    assert "fold 9: expected one of the 5 folds" in capsys.readouterr().err


def test_the_likeliest_label_above_one_half_wins_and_regions_lie_one_over_the_other():
    maps = [np.array([0.6, 0.9, 0.2, 0.5]), np.array([0.7, 0.8, 0.4, 0.5])]
    assert joined(iter(maps), [1, 2], overlap=False).tolist() == [2, 1, 0, 0]
    assert joined(iter(maps), [1, 2], overlap=True).tolist() == [2, 2, 0, 0]
