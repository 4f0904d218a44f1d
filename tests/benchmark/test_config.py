"""What a benchmark is asked to compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunetv2_conemos.benchmark.config import ALL_ARMS, Arm, Configuration, Recipe
from nnunetv2_conemos.benchmark.config_file import grown, read_recipe, recipe_text


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("word", "kind", "trainer"),
    [
        ("vanilla", "vanilla", "nnUNetTrainer"),
        ("per-label", "per-label", "nnUNetTrainer"),
        ("completed:MultiTalentTrainer", "completed", "nnUNetTrainer"),
        ("ceiling", "ceiling", "nnUNetTrainer"),
        ("ceiling:DoDNetTrainer", "ceiling", "DoDNetTrainer"),
        ("annotated-only", "annotated-only", "nnUNetTrainer"),
        ("annotated-only:UniMOSTrainer", "annotated-only", "UniMOSTrainer"),
        ("nnUNetTrainerOfMine", "trainer", "nnUNetTrainerOfMine"),
    ],
)
def test_an_arm_is_a_word(word, kind, trainer):
    arm = Arm.model_validate(word)
    assert (arm.name, arm.kind, arm.trainer) == (word, kind, trainer)


def test_the_teacher_of_a_completed_set_is_the_conditional_method_unless_named():
    assert Arm.model_validate("completed").teacher == Arm.model_validate("ConditionalFiLMTrainer")
    assert Arm.model_validate("completed:DoDNetTrainer").teacher.arm == "DoDNetTrainer"
    other = Arm(arm="completed", name="x", configuration="3d_4f")
    assert other.teacher == Arm(arm="ConditionalFiLMTrainer", configuration="3d_4f")
    assert other.teacher.name == "ConditionalFiLMTrainer 3d_4f", "another configuration is another run"
    with pytest.raises(ValueError, match="not a single network"):
        Arm(arm="per-label", prediction="x")
    queried = Arm(arm="LabelSetFiLMTrainer", optimiser="AdamW", prediction="singly")
    assert queried.name == "LabelSetFiLMTrainer AdamW singly"
    assert queried.trained == Arm(arm="LabelSetFiLMTrainer", optimiser="AdamW")
    sgd = Arm(arm="completed", optimiser="SGD")
    assert (sgd.name, sgd.teacher.name) == ("completed SGD", "ConditionalFiLMTrainer SGD")


def test_every_arm_runs_once_before_any_is_repeated():
    runs = Recipe(dataset="1", arms=("vanilla", "ceiling"), seeds=(3, 4), epochs=(1, 5)).runs()  # pyright: ignore
    assert [(run.epochs, run.seed, run.arm.name) for run in runs[:3]] == [
        (1, 3, "vanilla"), (1, 3, "ceiling"), (1, 4, "vanilla"),
    ]  # fmt: skip
    assert len({run.folder for run in runs}) == len(runs) == 8


def test_yaml_and_back(tmp_path: Path):
    text = (
        "dataset: D\nhide: {per_case: 1, groups: g.json}\narms: [vanilla, {arm: DoDNetTrainer, configuration: small}]\n"
        "configurations: {small: {features: 4, conemos: {placement: after_norm}}}\nepochs: [1]\n"
    )
    recipe = read_recipe(write(tmp_path, text), {"seeds": [7]})
    assert recipe.seeds == (7,)
    queried = read_recipe(write(tmp_path, text), {"arms": ["ceiling", "DoDNetTrainer small"]})
    assert queried.arms == (Arm(arm="ceiling"), recipe.arms[1]), "a name of the recipe's"
    assert recipe.hide
    assert recipe.hide.groups == tmp_path / "g.json"
    assert recipe.hide.words() == ["--per-case", "1", "--groups", str(tmp_path / "g.json"), "--seed", "0"]
    assert read_recipe(write(tmp_path, recipe_text(recipe)), {}) == recipe
    assert [arm.arm for arm in Recipe(dataset="1").arms] == list(ALL_ARMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: D\nconfigurations: {a: {base: a}}", "a is its own `base`"),
        ("dataset: 1\narms: [vanila]", "'vanila' is not an arm: expected vanilla, "),
        ("dataset: D\nepochs: [3]", r"epochs: .*expected some of 1, 2, 5, 10.*found \[3\]"),
        ("dataset: D\narms: [vanilla, vanilla]", "arms of one name: vanilla"),
        ("dataset: D\nhold_out: 3\ntest: {images: a, labels: b}", "`test` and `hold_out`: expected one of them"),
        ("dataset: D\nhide: {per_case: 1}\nannotated: a.json", "`annotated` and `hide`: expected one of them"),
        ("dataset: D\nsteps: 3", "steps: Extra inputs are not permitted"),
        ("arms: [vanilla]", "dataset: Field required"),
        ("- vanilla", "expected a mapping with `dataset`, found list"),
        ("dataset: [", "not valid YAML"),
    ],
)
def test_bad_recipes_name_the_entry(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_recipe(write(tmp_path, text), {})


def test_a_benchmark_may_grow_but_not_change(tmp_path: Path):
    file = write(tmp_path, recipe_text(Recipe(dataset="1", arms=("vanilla", {"arm": "ceiling", "name": "c"}))))  # pyright: ignore
    theirs = read_recipe(file, {})
    more = grown(read_recipe(file, {"arms": ["DoDNetTrainer"], "seeds": [9], "epochs": [1, 5]}), theirs, file)
    assert [arm.name for arm in more.arms] == ["vanilla", "c", "DoDNetTrainer"], "none is forgotten"
    assert (more.seeds, more.epochs) == ((0, 1, 9), (250, 1, 5))
    (tmp_path / "other").mkdir()
    with_small = write(tmp_path / "other", "dataset: '1'\narms: [vanilla]\nconfigurations: {small: {features: 4}}\n")
    smaller = read_recipe(with_small, {})
    assert set(grown(smaller, theirs, file).configurations) == {"small"}
    with pytest.raises(ValueError, match="configuration 'small' differ"):
        grown(smaller.model_copy(update={"configurations": {"small": Configuration(features=8)}}), smaller, file)
    with pytest.raises(ValueError, match="holds another benchmark: mirroring differ"):
        grown(read_recipe(file, {"mirroring": False}), theirs, file)
    with pytest.raises(ValueError, match="arm 'c' differ"):
        grown(read_recipe(file, {"arms": [{"arm": "ceiling:DoDNetTrainer", "name": "c"}]}), theirs, file)
