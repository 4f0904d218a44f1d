"""The trainers of the ablation each change one thing of ConditionalFiLMTrainer, and train."""

import importlib.util
import os

import numpy as np
import pytest
import torch
from architectures import LABELS
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from paths import ROOT
from worlds import make_trainer, world

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.benchmark.config_file import read_recipe
from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.losses.pair_sums import pair_sums
from nnunetv2_conemos.methods import ConditionalFiLMTrainer
from nnunetv2_conemos.records import Truth
from nnunetv2_conemos.training.sampling import Pairs

FOLDER = ROOT / "docs" / "benchmarks"
FILE = FOLDER / "ablation" / "ablation_trainers.py"


def load():
    spec = importlib.util.spec_from_file_location("ablation_trainers", FILE)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["ablation_trainers"] = module
    spec.loader.exec_module(module)
    return module


ablation = load()


def test_the_recipe_names_trainers_that_nnunet_finds(monkeypatch):
    doorway = FILE.parents[3] / "trainers"
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join((str(doorway), str(FILE.parent))))
    recipes = [read_recipe(FOLDER / name, {}) for name in ("ablation.yaml", "ablation_openkbp.yaml")]
    arms = {arm.arm for recipe in recipes for arm in recipe.arms}
    assert {trainer.__name__ for trainer in ablation.TRAINERS} <= arms
    for arm in arms:
        assert recursive_find_trainer_class_by_name(f"{arm}_Adam1en3_1epoch").settings["num_epochs"] == 1


@pytest.mark.parametrize("trainer", ablation.TRAINERS, ids=lambda t: t.__name__)
def test_ten_steps_lower_the_loss(trainer, nnunet_folders):
    world(nnunet_folders, LABELS, 2, "plain")
    torch.manual_seed(0)
    np.random.seed(0)
    made = make_trainer(nnunet_folders, trainer)
    made.initialize()
    batch = next(made.get_dataloaders()[0])
    made.network.train()
    losses = [float(made.train_step(batch)["loss"]) for _ in range(11)]
    assert losses[-1] < losses[0]
    ours = make_trainer(nnunet_folders, ConditionalFiLMTrainer)
    assert made.oversample_foreground_percent != ours.oversample_foreground_percent or trainer.method != ours.method


def test_the_dice_of_each_sample_rewards_predicting_nothing_where_the_pooled_one_does_not():
    target = torch.zeros(4, 1, 8, 8, dtype=torch.long)
    target[0, 0, :4] = 1
    labels = torch.ones(4, 1, dtype=torch.long)
    truth = Truth(target, labels, labels > 0, None)
    nothing, everything = torch.full((4, 1, 8, 8), -9.0), 18.0 * truth.onehot().float() - 9
    dice = {
        name: [
            loss._dice(pair_sums(z, truth.onehot(), truth.onehot() | True), truth).item() for z in (nothing, everything)
        ]
        for name, loss in (("pooled", MaskedDiceBCE()), ("single", ablation.PerSampleDiceBCE()))
    }
    assert dice["pooled"] == pytest.approx([0, -1], abs=0.02)
    single_empty = -3 * 1e-5 / (64 * torch.sigmoid(torch.tensor(-9.0)).item() + 1e-5) / 4
    assert dice["single"] == pytest.approx([single_empty, single_empty - 0.25], abs=0.02)


def test_negatives_are_voxels_of_annotated_labels_and_no_others():
    target = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    target[:, 0, 0] = 2
    truth = Truth(target, torch.tensor([[1], [2]]), torch.tensor([[False], [True]]), None)
    logits = torch.zeros(2, 1, 4, 4, requires_grad=True)
    loss = ablation.KnownNegatives()
    (gradient,) = torch.autograd.grad(loss(logits, truth), logits)
    assert (gradient[0, 0, 0] > 0).all(), "label 1 cannot be where label 2 is"
    assert (gradient[0, 0, 1:] == 0).all(), "elsewhere nobody knows"
    (known,) = torch.autograd.grad(MaskedDiceBCE()(logits, truth), logits)
    assert torch.equal(gradient[1], known[1]), "what is annotated is taught as before"


def test_a_quarter_of_the_draws_asks_for_what_is_not_annotated():
    sources = {
        "A": {"cases": ["a*"], "annotated": ["a"]},
        "B": {"cases": ["b*"], "annotated": ["a", "b", "c"]},
        "U": {"cases": ["u*"], "annotated": []},
    }
    cases = ["a0", "a1", "b0", "u0"]
    table = SourceTable.from_dataset_json({"labels": LABELS, "sources": sources}, cases)
    sampler = ablation.PairsAndNegatives()
    drawn = [sampler.parse(identifier, table) for identifier in sampler.identifiers(table, cases)]
    negative = [one for one in drawn if not table.known(one.case)[one.queried[0] - 1]]
    assert len(negative) / len(drawn) == pytest.approx(0.25, abs=0.01)
    assert {one.case for one in negative} == {"a0", "a1"}
    assert {one.centred for one in negative} == {(1,)}
    complete = SourceTable.from_dataset_json({"labels": LABELS}, cases)
    assert np.array_equal(sampler.identifiers(complete, cases), Pairs().identifiers(complete, cases))
