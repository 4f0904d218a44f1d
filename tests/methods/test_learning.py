"""Partial labels are learnt: the method's tests 6 to 9, through the real trainer, loader and augmentation."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from learning import FEATURES, argmax, grouped_cases, scores
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from worlds import SQUARE_DISC, dice, make_trainer, shapes, train, write_world

from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.methods import (
    ConditionalFiLMTrainer,
    DoDNetTrainer,
    LabelSetFiLMTrainer,
    MarginalLossTrainer,
    MultiDecoderTrainer,
    MultiTalentTrainer,
)

GROUPS = {"A": {"cases": ["a*"], "annotated": ["square"]}, "B": {"cases": ["b*"], "annotated": ["disc"]}}


def test_two_groups_of_one_distribution_are_learnt_where_stock_nnunet_forgets(nnunet_folders):
    """One case in ten annotates discs: to stock nnU-Net a disc is background nine times out of ten."""
    write_world(nnunet_folders, grouped_cases(np.random.default_rng(0), 45, 5), SQUARE_DISC, GROUPS, features=FEATURES)
    ours = train(make_trainer(nnunet_folders, ConditionalFiLMTrainer), 300)
    stock = train(make_trainer(nnunet_folders, nnUNetTrainer), 300)
    found = scores(ours, np.random.default_rng(1), argmax)
    assert min(found.values()) > 0.8, found
    forgotten = scores(stock, np.random.default_rng(1), argmax)
    assert forgotten[2] < 0.4, forgotten


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainer",
    [LabelSetFiLMTrainer, MultiTalentTrainer, MarginalLossTrainer, DoDNetTrainer, MultiDecoderTrainer],
    ids=lambda trainer: trainer.__name__,
)
def test_every_method_for_partial_labels_learns_both_groups(trainer, nnunet_folders):
    """No baseline is there to lose: each finds the labels that never stand in one annotation."""
    write_world(nnunet_folders, grouped_cases(np.random.default_rng(0)), SQUARE_DISC, GROUPS, features=FEATURES)
    found = scores(train(make_trainer(nnunet_folders, trainer), 300), np.random.default_rng(1), argmax)
    assert min(found.values()) > 0.7, found


def nested_cases(rng, number=12):
    """core inside body inside whole; every third case annotates the super-region only, written as value 1."""
    cases, y, x = {}, *np.mgrid[:32, :32]
    for i in range(number):
        cy, cx, r = *rng.integers(13, 19, 2), rng.integers(8, 11)
        distance = np.hypot(y - cy, x - cx)
        target = np.select([distance <= r / 3, distance <= r / 1.5, distance <= r], [3, 2, 1])[None].astype(np.int8)
        image = (target * 0.8 + rng.normal(0, 0.2, target.shape)).astype(np.float32)
        cases[f"{'w' if i % 3 == 0 else 'f'}{i:02d}"] = image, (target > 0).astype(np.int8) if i % 3 == 0 else target
    return cases


@pytest.mark.slow
def test_nested_regions_are_learnt_from_cases_annotated_for_the_super_region_only(nnunet_folders):
    labels = {"background": 0, "whole": [1, 2, 3], "body": [2, 3], "core": 3}
    sources = {
        "whole only": {"cases": ["w*"], "annotated": ["whole"]},
        "full": {"cases": ["f*"], "annotated": ["whole", "body", "core"]},
    }
    rng = np.random.default_rng(0)
    write_world(nnunet_folders, nested_cases(rng), labels, sources, features=FEATURES)
    network = train(make_trainer(nnunet_folders, ConditionalFiLMTrainer), 300)
    new = nested_cases(np.random.default_rng(5))
    complete = {case: world for case, world in new.items() if case.startswith("f")}
    for channel, values in enumerate(((1, 2, 3), (2, 3), (3,))):
        found = []
        for image, target in complete.values():
            with torch.no_grad():
                logits = network(torch.from_numpy(image)[None])
            found.append(dice((logits[0, channel] > 0).numpy(), np.isin(target[0], values)))
        assert np.mean(found) > 0.8, (channel, found)


def small_organ_cases(rng, number=10):
    """Volumes of 8 slices; each of two small organs shows in two slices only."""
    cases = {}
    for i in range(number):
        target = np.zeros((8, 32, 32), dtype=np.int8)
        for label in (1, 2):
            z, y, x = rng.integers(0, 7), rng.integers(4, 24), rng.integers(4, 9) + 14 * (label - 1)
            target[z : z + 2, y : y + 5, x : x + 5] = label
        cases[f"{i:02d}"] = (2.0 * target + rng.normal(0, 0.3, target.shape)).astype(np.float32), target
    return cases


def dice_of_small_organs(nnunet_folders, trainer):
    """Mean Dice of each organ in new volumes, after 600 steps."""
    both = {"S": {"cases": ["*"], "annotated": ["square", "disc"]}}
    cases = small_organ_cases(np.random.default_rng(0))
    write_world(nnunet_folders, cases, SQUARE_DISC, both, batch_size=8, features=FEATURES)
    network = train(make_trainer(nnunet_folders, trainer), 600)
    found = {1: [], 2: []}
    for image, target in small_organ_cases(np.random.default_rng(7)).values():
        with torch.no_grad():
            predicted = network(torch.from_numpy(image)[:, None]).argmax(1).numpy()
        for label, values in found.items():
            values.append(dice(predicted == label, target == label))
    return [np.mean(values) for values in found.values()]


@pytest.mark.slow
def test_small_organs_in_2d_are_learnt(nnunet_folders):
    """Three of four slices do not hold the queried organ."""
    means = dice_of_small_organs(nnunet_folders, ConditionalFiLMTrainer)
    assert min(means) > 0.6, means


class DiceOfEachSample(MaskedDiceBCE):
    """As `batch_dice: false` of nnU-Net would have it: an empty target rewards predicting nothing."""

    def _dice(self, sums, truth):
        return -((2 * sums.overlap + 1) / (sums.predicted + sums.present + 1)).mean()


class AnyPatch(ConditionalFiLMTrainer):
    """No patch is centred on a label."""

    method, settings = ConditionalFiLMTrainer.method, {"oversample_foreground_percent": 0.0}


class AnyPatchDiceOfEachSample(AnyPatch):
    method = replace(AnyPatch.method, loss=lambda configuration, ddp: DiceOfEachSample(ddp, smooth=1.0))
    settings = AnyPatch.settings


@pytest.mark.slow
def test_the_dice_of_each_sample_finds_nothing_where_most_targets_are_empty(nnunet_folders):
    """The pooled Dice finds something even then. With patches centred on the queried label, both learn."""
    assert max(dice_of_small_organs(nnunet_folders, AnyPatchDiceOfEachSample)) < 0.1
    shutil.rmtree(nnunet_folders / "nnUNet_preprocessed")
    assert max(dice_of_small_organs(nnunet_folders, AnyPatch)) > 0.4


def test_absent_but_annotated_labels_are_queried(nnunet_folders):
    """Discs are annotated but absent in group N: learnt as absent. In group B they are there."""
    rng = np.random.default_rng(0)
    cases = grouped_cases(rng, 6, 6)
    cases |= {f"n{i}": (img, np.zeros_like(t)) for i, (img, t) in enumerate([shapes(rng) for _ in range(6)])}
    sources = GROUPS | {"N": {"cases": ["n*"], "annotated": ["disc"]}}
    write_world(nnunet_folders, cases, SQUARE_DISC, sources)
    trainer = make_trainer(nnunet_folders, ConditionalFiLMTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    empty = 0
    for _ in range(20):
        batch = next(loader)
        query, truth = trainer.to_query_and_truth(batch)
        absent = torch.tensor([str(key).startswith("n") for key in batch["keys"]])
        assert truth[0].known.all()
        assert (query.labels[absent] == 2).all()
        assert not truth[0].onehot()[absent].any()
        empty += int(absent.sum())
    assert empty > 10, "an annotated label that is absent must be queried"
