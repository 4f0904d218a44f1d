"""UniMOS: target adaptive loss, views, pseudo-labels, fused scales, and two streams of cases."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from architectures import LABELS, build, patch, plans
from learning import FEATURES, argmax, scores
from torch import nn
from worlds import NAME, make_trainer, train, two_stream_world

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.losses.marginalised import marginalised_log_probabilities
from nnunetv2_conemos.methods import UniMOSTrainer, UniMOSTrainer_NoMirroring, unimos
from nnunetv2_conemos.methods.unimos import augment as views
from nnunetv2_conemos.methods.unimos.loss import TargetAdaptiveLoss, weighted_nll
from nnunetv2_conemos.methods.unimos.pyramid import Pyramid, ResidualBlock
from nnunetv2_conemos.methods.unimos.scale_fusion import FusedScalesUNet, Perturb, ScaleFusion
from nnunetv2_conemos.records import Query, Truth
from nnunetv2_conemos.training.semi_supervised import Streams, within_epochs

EVERY = torch.arange(1, 4)


def truth(target, known, valid=None):
    target = torch.as_tensor(target)
    return Truth(target, EVERY.expand(len(target), -1), torch.as_tensor(known), valid)


def heads(logits):
    """Against background, whose logit is the first."""
    return logits[:, 1:] - logits[:, :1]


# ---- loss


@pytest.mark.parametrize(
    ("known", "target", "expected"),
    [
        ((1, 0, 0), 0, lambda p: -0.2 * math.log(p[0] + p[2] + p[3])),
        ((1, 0, 0), 1, lambda p: -1.2 * math.log(p[1])),
        ((1, 0, 1), 0, lambda p: -0.2 * math.log(p[0] + p[2])),
        ((1, 0, 1), 3, lambda p: -1.2 * math.log(p[3])),
        ((1, 1, 1), 2, lambda p: -1.2 * math.log(p[2])),
        ((1, 0, 0), 3, lambda p: -0.2 * math.log(p[0] + p[2] + p[3])),  # a stray voxel of what is not annotated
    ],
)
def test_one_voxel_by_hand(known, target, expected):
    logits = torch.tensor([0.3, -0.7, 1.1, 0.2]).view(1, 4, 1, 1)
    p = torch.softmax(logits.flatten(), 0).tolist()
    one = truth([[[[target]]]], [[bool(k) for k in known]])
    weight = 1.2 if known[target - 1] and target else 0.2
    assert TargetAdaptiveLoss()(heads(logits), one).item() == pytest.approx(expected(p) / weight, rel=1e-5)


def random_batch(seed=0, samples=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 4, 6, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 4, (samples, 1, 6, 5), generator=generator)


def test_everything_annotated_is_weighted_cross_entropy_and_nothing_annotated_is_zero():
    logits, target = random_batch()
    weight = torch.tensor([0.2, 1.2, 1.2, 1.2], dtype=torch.float64)
    expected = nn.functional.cross_entropy(logits, target[:, 0], weight)
    assert TargetAdaptiveLoss()(heads(logits), truth(target, [[True] * 3] * 3)).item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    leaf = heads(logits).requires_grad_()
    nothing = TargetAdaptiveLoss()(leaf, truth(target, [[False] * 3] * 3))
    nothing.backward()
    assert nothing.item() == 0
    assert leaf.grad.abs().max() == 0


def test_unknown_labels_enter_through_their_log_sum_exp_alone():
    logits, target = random_batch()
    known = truth(target * (target == 1), [[True, False, False]] * 3)
    value = TargetAdaptiveLoss()(heads(logits), known).item()
    for permutation in ([0, 1, 3, 2], [2, 1, 0, 3], [3, 1, 2, 0]):
        assert TargetAdaptiveLoss()(heads(logits[:, permutation]), known).item() == pytest.approx(value, abs=1e-6)
    assert TargetAdaptiveLoss()(heads(logits[:, [1, 0, 2, 3]]), known).item() != pytest.approx(value, abs=1e-3)


def test_gradients_are_those_of_the_two_formulas():
    logits = torch.tensor([[0.3, -0.7, 1.1, 0.2]]).view(1, 4, 1, 1)
    p = torch.softmax(logits.flatten(), 0)
    for target in (0, 1):
        leaf = logits.clone().requires_grad_()
        TargetAdaptiveLoss()(heads(leaf), truth([[[[target]]]], [[True, False, False]])).backward()
        merged = torch.tensor([1.0, 0.0, 1.0, 1.0])  # background and what is not annotated
        own = torch.tensor([0.0, 1.0, 0.0, 0.0])
        expected = p - (own if target else merged * p / (p * merged).sum())
        assert torch.allclose(leaf.grad.flatten(), expected, atol=1e-6)
        assert leaf.grad.flatten()[2] != 0, "labels that are not annotated do get a gradient"


def test_samples_are_combined_by_the_weights_of_their_voxels():
    logits, target = random_batch()
    known = [[True, False, False], [True, True, True], [False, True, False]]
    together = TargetAdaptiveLoss()(heads(logits), truth(target, known)).item()
    parts = []
    for i in range(3):
        one = truth(target[i : i + 1], known[i : i + 1])
        shown = one.onehot() & one.known[..., None, None]
        weight = torch.where(shown.any(1), 1.2, 0.2).sum().item()
        parts.append((TargetAdaptiveLoss()(heads(logits[i : i + 1]), one).item(), weight))
    expected = sum(value * weight for value, weight in parts) / sum(weight for _, weight in parts)
    assert together == pytest.approx(expected, rel=1e-5)


def test_ignored_voxels_and_unlabelled_samples_do_not_count():
    logits, target = random_batch()
    valid = torch.rand(target.shape) < 0.5
    known = [[True, True, False], [False] * 3, [True] * 3]
    noise = torch.where(valid, logits, torch.randn_like(logits))
    noise[1] = torch.randn_like(noise[1])
    plain, other = (TargetAdaptiveLoss()(heads(z), truth(target, known, valid)).item() for z in (logits, noise))
    assert plain == pytest.approx(other, abs=1e-6)


def dice_part(logits, known):
    return (TargetAdaptiveLoss(dice_weight=1.0)(logits, known) - TargetAdaptiveLoss()(logits, known)).item()


def test_the_dice_is_of_annotated_labels_pooled_over_samples():
    """Label 1 is annotated in two samples; label 2 in one, where it is absent; label 3 in the other."""
    logits, target = random_batch(samples=2)
    target[1][target[1] == 2] = 0
    known = truth(target, [[True, False, True], [True, True, False]])
    p = torch.softmax(logits, 1)
    overlap, mass = ((p[:, 1] * (target[:, 0] == 1)).sum(), p[:, 1].sum() + (target == 1).sum())
    first = (2 * overlap / mass).item()
    third = (2 * (p[0, 3] * (target[0, 0] == 3)).sum() / (p[0, 3].sum() + (target[0] == 3).sum())).item()
    assert dice_part(heads(logits), known) == pytest.approx(-(first + third) / 2, abs=1e-5)
    weighted = TargetAdaptiveLoss(dice_weight=0.3)(heads(logits), known) - TargetAdaptiveLoss()(heads(logits), known)
    assert weighted.item() == pytest.approx(-0.3 * (first + third) / 2, abs=1e-5)
    nothing = truth(target, [[False] * 3] * 2)
    assert TargetAdaptiveLoss(dice_weight=1.0)(heads(logits), nothing).item() == 0


def test_the_dice_does_not_see_ignored_voxels_nor_what_is_not_annotated():
    logits, target = random_batch()
    valid = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    known = [[True, True, False], [False] * 3, [True, False, False]]
    other_logits, other_target = torch.where(valid, logits, 5.0), torch.where(valid, target, 1)
    other_logits[1], other_target[1] = -other_logits[1], 2
    stray = torch.where((target == 3) | ((target == 2) & (torch.arange(3) == 2).view(3, 1, 1, 1)), 0, other_target)
    other_logits[:, [0, 3]] = other_logits[:, [3, 0]]  # background and a label that nobody annotates
    plain = dice_part(heads(logits), truth(target, known, valid))
    assert dice_part(heads(other_logits), truth(stray, known, valid)) == pytest.approx(plain, abs=1e-6)
    assert dice_part(heads(logits), truth(target, known)) != pytest.approx(plain, abs=1e-3)


def test_the_dice_weight_is_an_option_of_the_plans(nnunet_folders):
    for options, weight in (({}, 0.0), ({"dice_weight": 0.5}, 0.5)):
        two_stream_world(nnunet_folders, **options)
        trainer = make_trainer(nnunet_folders, UniMOSTrainer)
        trainer.initialize()
        assert trainer.loss.dice_weight == weight
    with pytest.raises(ValueError, match="dice_weight: Input should be greater than or equal to 0"):
        build(UniMOSTrainer, plans(2, dice_weight=-1.0))


# ---- views


def test_strong_views_differ_and_keep_geometry_and_range():
    torch.manual_seed(0)
    image = 0.1 * torch.randn(4, 2, 8, 20, 20) - 3
    image[:, :, 4, 10, 10] = 5.0  # a landmark
    first, second = views.photometric(image), views.photometric(image)
    assert not torch.allclose(first, second)
    changed = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(first, image, strict=True)]
    assert sum(changed) >= 3
    for view in (first, second):
        assert (view.amax((2, 3, 4)) <= image.amax((2, 3, 4)) + 1e-4).all()
        assert (view.amin((2, 3, 4)) >= image.amin((2, 3, 4)) - 1e-4).all()
        peak = view[:, :, 4].flatten(2).argmax(2)
        assert (peak == 10 * 20 + 10).all()


@pytest.mark.parametrize("size", [(40, 40), (12, 20, 30), (5, 40, 40)])
def test_boxes_have_the_drawn_share_and_lie_inside(size):
    torch.manual_seed(0)
    inside = views.cutmix_boxes(torch.Size((60, 3, *size)), torch.device("cpu"))
    assert inside.shape == (60, 1, *size)
    shares = inside.flatten(1).float().mean(1)
    assert 0.01 < shares.min() < 0.1
    assert 0.3 < shares.max() < 0.5
    for sample in inside[:10, 0]:
        where = sample.nonzero()
        corner, end = where.amin(0), where.amax(0) + 1
        assert len(where) == (end - corner).prod(), "a box"
    assert len({tuple(sample.nonzero().amin(0).tolist()) for sample in inside[:, 0]}) > 20, "one per sample"


def test_pasting_takes_the_inside_from_the_other_and_changes_neither():
    own, other = torch.zeros(2, 1, 6, 6), torch.ones(2, 1, 6, 6)
    inside = torch.zeros(2, 1, 6, 6, dtype=torch.bool)
    inside[:, :, 1:3, 2:5] = True
    assert torch.equal(views.cutmix(inside, other, own), inside.float())
    assert torch.equal(views.cutmix(inside, other[:, 0], own[:, 0]), inside[:, 0].float())
    assert own.sum() == 0
    assert other.min() == 1


def test_turning_keeps_the_content_and_unequal_planes():
    torch.manual_seed(0)
    image = torch.randn(16, 1, 3, 8, 8)
    turned = views.turned(image)
    assert torch.equal(turned.flatten(1).sort(1)[0], image.flatten(1).sort(1)[0])
    kept = sum(torch.equal(a, b) for a, b in zip(turned, image, strict=True))
    assert 1 <= kept <= 9, "a quarter is not turned"
    flat = torch.randn(4, 1, 8, 6)
    assert torch.equal(views.turned(flat), flat)


# ---- pseudo-labels


class Fixed(nn.Module):
    """Answers by the mean of an image: 0 -> label 1 surely, 1 -> label 2 surely; perturbed: its negative."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def answer(self, image):
        kind = (image.mean((1, 2, 3)) > 0.5).long()
        logits = torch.full((len(image), 3, *image.shape[2:]), -20.0)
        for sample, which in zip(logits, kind, strict=True):
            sample[which] = 20.0
        return self.scale * logits

    def forward(self, query):
        self.seen.append(query)
        if isinstance(query, Perturb):
            return self.answer(query.image), -self.answer(query.image)
        return self.answer(query.image)


def test_pseudo_labels_are_pasted_per_view_and_believed_when_sure(monkeypatch):
    weak, mixed = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    monkeypatch.setattr(unimos, "photometric", lambda x: x + 0.01)
    network, queried = Fixed(), torch.ones(2, 3, dtype=torch.bool)
    inside = torch.ones(4, 8, 8, dtype=torch.bool)
    inside[:2, :, :2] = False  # padding of the weak views
    given = unimos.Unlabelled(torch.cat((weak, mixed)), inside, torch.ones(4, 3, dtype=torch.bool))
    made = unimos.Views(network, given, queried, believed=0.9)
    assert (made.of_mixed.label == 2).all()
    assert made.of_mixed.confidence.min() > 0.999, "a sure prediction is sure after merging too"
    seen = []
    monkeypatch.setattr(made, "_consistency", lambda logits, believed: seen.append(believed) or logits.sum() * 0)
    made.perturbed()
    assert (made.of_weak.label == 1).all()
    before = made.of_weak.label.clone(), made.of_mixed.label.clone()
    made.strong()
    made.strong()
    _, first, second = seen
    for believed, query in ((first, network.seen[-2]), (second, network.seen[-1])):
        box = query.image[:, 0] > 0.5  # pasted images are those of the others
        assert box.any()
        assert torch.equal(query.image[:, 0], torch.where(box, 1.01, 0.01)), "photometric views of both"
        assert torch.equal(believed.label, torch.where(box, 2, 1))
        padded = torch.zeros(2, 8, 8, dtype=torch.bool).index_fill(2, torch.arange(2), True)
        confidence = torch.where(box, made.of_mixed.confidence, made.of_weak.confidence)
        assert torch.equal(believed.confidence, confidence)
        assert (believed.confidence[padded & ~box] == 0).all(), "nothing is believed about padding"
        assert (believed.confidence[padded & box] > 0.99).all(), "of what is pasted over it, it is"
    assert not torch.equal(first.label, second.label), "a box for each view"
    assert torch.equal(made.of_weak.label, before[0])
    assert torch.equal(made.of_mixed.label, before[1])
    assert made.accepted == 1, "of what is not padding"


def test_each_sample_believes_in_the_labels_that_it_is_asked(monkeypatch):
    """Pasted pseudo-labels too are among those of the image that receives them."""
    torch.manual_seed(0)
    answers = torch.randn(2, 3, 8, 8)
    monkeypatch.setattr(unimos, "photometric", lambda x: x)
    queried = torch.tensor([[True, False, False], [False, True, False]])
    given = unimos.Unlabelled(torch.zeros(4, 1, 8, 8), torch.ones(4, 8, 8).bool(), torch.ones(4, 3).bool())
    made = unimos.Views(
        lambda query: (answers, answers) if isinstance(query, Perturb) else answers.flip(0),
        given,
        queried,
        believed=0.5,
    )
    seen = []
    monkeypatch.setattr(made, "_consistency", lambda logits, believed: seen.append(believed) or logits.sum() * 0)
    made.perturbed()
    made.strong()
    for believed in (made.of_mixed, *seen):
        assert set(believed.label[0].unique().tolist()) == {0, 1}
        assert set(believed.label[1].unique().tolist()) == {0, 2}


def test_unlabelled_cases_are_asked_what_their_own_dataset_teaches(nnunet_folders):
    """Those of the first half of the batch, whose weak views receive what is pasted; padding is told apart."""
    two_stream_world(nnunet_folders, targets="dataset")
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    trainer.get_dataloaders()
    trainer.targets = {"u00": np.array([True, False]), "u01": np.array([False, True])}
    target = torch.zeros(4, 1, 16, 16, dtype=torch.int16)
    target[:, :, :4] = -1
    batch = {"data": target.float(), "target": target, "keys": ["u01", "u00", "u00", "u00"]}
    views = trainer._views(batch)
    assert views.queried.tolist() == [[False, True], [True, False]]
    assert torch.equal(views.weak.inside, views.weak.image[:, 0] == 0), "turned like the image"
    assert torch.equal(views.of_mixed.confidence > 0, views.mixed.image[:, 0] == 0)


def test_pseudo_labels_are_among_what_is_asked():
    logits = torch.randn(2, 3, 8, 8)
    queried = torch.tensor([[False, True, False], [True, True, True]])
    every = torch.ones(2, 3, dtype=torch.bool)
    found = unimos.pseudo_labels(logits, queried, every)
    assert set(found.label[0].unique().tolist()) <= {0, 2}
    p = torch.softmax(torch.cat((torch.zeros(2, 1, 8, 8), logits), 1), 1)
    expected = torch.stack((p[0, 0] + p[0, 1] + p[0, 3], p[0, 2])).max(0)[0]
    assert torch.allclose(found.confidence[0], expected, atol=1e-6)
    assert (found.confidence[0] >= 0.5).all(), "two classes"
    assert not unimos.pseudo_labels(logits.requires_grad_(), queried, every).confidence.requires_grad


def test_what_a_case_cannot_show_has_no_part_in_its_pseudo_labels():
    logits, queried = torch.randn(3, 3, 8, 8), torch.tensor([[True, True, False]] * 3)
    possible = torch.tensor([[True, False, True], [True, True, False], [False, False, True]])
    found = unimos.pseudo_labels(logits, queried, possible)
    p = torch.cat((torch.ones(3, 1, 8, 8), logits.exp()), 1)
    for sample, background, labels in ((0, [0, 3], [1]), (1, [0], [1, 2]), (2, [0, 3], [])):
        others = [p[sample, k] for k in labels]
        expected = torch.stack((p[sample, background].sum(0), *others)) / p[sample, background + labels].sum(0)
        confidence, which = expected.max(0)
        assert torch.allclose(found.confidence[sample], confidence, atol=1e-6)
        assert torch.equal(found.label[sample], torch.tensor([0, *labels])[which])


def test_both_halves_of_a_batch_are_asked_what_their_own_tags_allow(nnunet_folders):
    two_stream_world(nnunet_folders, absent={"u00": ["disc"], "u01": ["square"]})
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    trainer.get_dataloaders()
    target = torch.zeros(4, 1, 16, 16, dtype=torch.int16)
    views = trainer._views({"data": target.float(), "target": target, "keys": ["u00", "u02", "u01", "u00"]})
    assert views.weak.possible.tolist() == [[True, False], [True, True]]
    assert views.mixed.possible.tolist() == [[False, True], [True, False]]
    assert not (views.of_mixed.label[0] == 1).any()
    assert not (views.of_mixed.label[1] == 2).any()


def test_the_mean_is_over_all_voxels_and_nothing_believed_is_zero():
    torch.manual_seed(0)
    logits, queried = torch.randn(2, 3, 8, 8, requires_grad=True), torch.ones(2, 3, dtype=torch.bool)
    label = torch.ones(2, 8, 8, dtype=torch.long)
    accepted = torch.ones(2, 8, 8, dtype=torch.bool)
    same = torch.zeros(2, 3, 8, 8)
    whole = unimos.consistency(same, queried, label, accepted)
    half = accepted.clone()
    half[:, :4] = False
    assert unimos.consistency(same, queried, label, half).item() == pytest.approx(whole.item() / 2)
    assert whole.item() == pytest.approx(1.2 * math.log(4)), "weighted, and not divided by weights"
    none = unimos.consistency(logits, queried, label, ~accepted)
    none.backward()
    assert none.item() == 0
    assert logits.grad.abs().max() == 0


def test_thresholds_rise_with_the_training():
    assert [unimos.threshold(x) for x in (0, 0.279, 0.281, 0.559, 0.561, 1)] == [0.7, 0.7, 0.8, 0.8, 0.9, 0.9]


def test_a_step_believes_as_much_as_the_share_of_the_training_asks(nnunet_folders):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    _, unlabelled = next(trainer.get_dataloaders()[0])
    for epoch, expected in ((0, 0.7), (trainer.num_epochs // 2, 0.8), (trainer.num_epochs - 1, 0.9)):
        trainer.current_epoch = epoch
        assert trainer._views(unlabelled).believed == expected


def test_maps_of_unlabelled_cases_cannot_leak(nnunet_folders, monkeypatch):
    two_stream_world(nnunet_folders)
    monkeypatch.setattr(unimos, "threshold", lambda _: 0.3)  # an untrained network is sure of nothing
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    labelled, unlabelled = next(trainer.get_dataloaders()[0])
    state, losses = {name: value.clone() for name, value in trainer.network.state_dict().items()}, []
    for poison in (0, 1, 2):
        trainer.network.load_state_dict(state)
        torch.manual_seed(7)
        poisoned = unlabelled | {"target": torch.full_like(torch.as_tensor(unlabelled["target"]), poison)}
        report = trainer.train_step((labelled, poisoned))
        assert report["unsupervised loss"] > 0
        losses.append(float(report["loss"]))
    assert losses[0] == losses[1] == losses[2]


def test_views_keep_full_precision_where_the_network_does_not():
    image = torch.randn(2, 1, 24, 24)
    torch.manual_seed(0)
    plain = views.photometric(image)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(views.photometric(image), plain)


def test_rmsprop_goes_on_where_a_training_stopped(nnunet_folders, tmp_path):
    two_stream_world(nnunet_folders, optimiser="RMSprop")
    first, second = (make_trainer(nnunet_folders, UniMOSTrainer) for _ in range(2))
    first.initialize()
    first.train_step(next(first.get_dataloaders()[0]))
    first.current_epoch = 50
    first.save_checkpoint(str(tmp_path / "stopped.pth"))
    second.initialize()
    second.load_checkpoint(str(tmp_path / "stopped.pth"))
    assert isinstance(second.optimizer, torch.optim.RMSprop)
    kept, found = (trainer.optimizer.state_dict()["state"] for trainer in (first, second))
    assert kept.keys() == found.keys()
    for number, state in kept.items():
        assert torch.equal(state["momentum_buffer"], found[number]["momentum_buffer"])
    assert any(state["momentum_buffer"].any() for state in kept.values())
    second.on_train_epoch_start()
    first.lr_scheduler.step(second.current_epoch)
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"] < 5e-4


def test_rmsprop_decays_as_published():
    configuration = plans(2, optimiser="RMSprop").get_configuration("tiny")
    optimiser, schedule = unimos.rmsprop([nn.Parameter(torch.ones(1))], configuration, 2500)
    group = optimiser.param_groups[0]
    assert (group["momentum"], group["alpha"]) == (0.9, 0.99)
    for epoch, power in ((0, 0), (1, 1), (40, 1), (41, 2), (2499, 63)):
        schedule.step(epoch)
        assert group["lr"] == pytest.approx(5e-4 * 0.99**power)
    assert unimos.rmsprop([nn.Parameter(torch.ones(1))], plans(2).get_configuration("tiny"), 10) is None


def test_unlabelled_cases_are_asked_everything_or_what_their_dataset_annotates():
    sources = {
        "A": {"cases": ["a*"], "annotated": ["a"], "dataset": "one"},
        "B": {"cases": ["b*"], "annotated": ["b"], "dataset": "two"},
        "U": {"cases": ["u*"], "annotated": [], "dataset": "one"},
        "V": {"cases": ["v*"], "annotated": []},
    }
    table = SourceTable.from_dataset_json({"labels": LABELS, "sources": sources}, ["a0", "b0", "u0", "v0"])
    everything = unimos.targets_of(table, table.cases, "all")
    assert everything.keys() == set(table.cases)
    assert everything["u0"].tolist() == [True, True, False], "nobody annotates c"
    of_dataset = unimos.targets_of(table, table.cases, "dataset")
    assert of_dataset["u0"].tolist() == [True, False, False]
    assert of_dataset["v0"].tolist() == [True, True, False]
    assert unimos.targets_of(table, ["a0", "u0"], "all")["u0"].tolist() == [True, False, False], "b is not trained"


# ---- network


def network(dim=2, kind="plain", **options):
    torch.manual_seed(0)
    made = build(UniMOSTrainer, plans(dim, kind, **options))
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def test_scales_are_weighted_by_one_number_each():
    torch.manual_seed(0)
    fusion = ScaleFusion(4, nn.Conv3d)
    scales = [torch.randn(2, 4, 6, 10, 12) for _ in range(3)]
    weights = fusion.weights(scales)
    assert weights.shape == (2, 3)
    assert torch.allclose(weights.sum(1), torch.ones(2))
    expected = sum(w.view(2, 1, 1, 1, 1) * z for w, z in zip(weights.unbind(1), scales, strict=True))
    assert torch.allclose(fusion(scales), expected, atol=1e-6)
    fusion(scales).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in fusion.parameters() if parameter.ndim > 1)
    fusion.weights = lambda _: torch.tensor([[0.0, 1.0, 0.0]] * 2)
    assert torch.equal(fusion(scales).argmax(1), scales[1].argmax(1))


@pytest.mark.parametrize(("convolution", "size"), [(nn.Conv2d, (24, 40)), (nn.Conv3d, (8, 16, 24))])
def test_the_pyramid_takes_any_strides(convolution, size):
    dim = len(size)
    strides = [[1] * dim, [1, *[2] * (dim - 1)], [2] * dim]
    made = FusedScalesUNet(Pyramid(2, 4, [4, 6, 8], strides, convolution), (1, 2, 3))
    assert made(torch.randn(1, 2, *size)).shape == (1, 4, *size)
    scales = made.decoder.decode(made.decoder.encode(torch.randn(1, 2, *size)))
    assert [z.shape[1] for z in scales] == [4, 4, 4]
    assert scales[2].shape[2:] == tuple(s // (2 if axis == 0 else 4) for axis, s in enumerate(size))


def test_the_published_pyramid_has_the_published_size():
    """28.27 million parameters, some of them 1x1 convolutions that never run, beside identities; we have none."""
    made = Pyramid(3, 4, [64, 128, 256, 512, 512], [[1, 1]] + [[2, 2]] * 4, nn.Conv2d)
    idle = sum(2 * w + w * w + w for w in (128, 256, 512, 64, 64, 64, 64))
    assert (sum(p.numel() for p in made.parameters()) + idle) / 1e6 == pytest.approx(28.27, abs=0.01)


def test_the_stem_is_shared_and_every_concatenation_of_the_encoder_is_of_equal_depth():
    widths = [4, 6, 8, 10]
    made = Pyramid(1, 3, widths, [[1, 1]] + [[2, 2]] * 3, nn.Conv2d)
    calls = []
    made.stem.register_forward_hook(lambda *_: calls.append("stem"))
    made.encode(torch.randn(1, 1, 32, 32))
    assert len(calls) == len(widths)

    def depth(blocks):
        return sum(2 for module in blocks.modules() if isinstance(module, ResidualBlock))

    encoder = 2  # convolutions of the stem
    for level, (branch, down) in enumerate(zip(made.branches, made.down, strict=True)):
        assert 2 + depth(branch) == encoder, f"level {level + 1}"
        encoder += depth(down)
    outputs = [depth(output) for output in made.outputs]
    decoder = [sum(depth(up) for up in made.up[level:]) for level in range(len(made.up))] + [0]
    assert len({d + o for d, o in zip(decoder, outputs, strict=True)}) == 1, "all answers are equally deep"


@pytest.mark.parametrize("options", [{}, {"network": "planned"}, {"perturb": "features"}], ids=str)
@pytest.mark.parametrize("dim", [2, 3])
def test_perturbed_answers_differ_and_plain_ones_do_not(options, dim):
    made, image = network(dim, **options), torch.randn(2, 1, *patch(dim))
    every = EVERY.expand(2, -1)
    with torch.no_grad():
        for training in (True, False):
            made.train(training)
            plain, perturbed = made(Perturb(image))
            assert torch.equal(plain, made(Perturb(image))[0])
            assert torch.allclose(plain, made(Query(image, every)), atol=1e-5)
            assert not torch.allclose(plain, perturbed, atol=1e-3)
            assert torch.equal(made(image), made(image))
    _, perturbed = made(Perturb(image))
    perturbed.square().sum().backward()
    encoder = made.decoder.stem if hasattr(made.decoder, "stem") else made.decoder.encoder
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters() if p.ndim > 1)


def test_two_loaders_are_drawn_from_side_by_side(nnunet_folders, capsys):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    loader, validation = trainer.get_dataloaders()
    assert "6 training cases are not annotated for anything: the unlabelled stream" in capsys.readouterr().out
    drawn, halves = set(), []
    for _ in range(20):
        labelled, unlabelled = next(loader)
        assert {str(key)[0] for key in labelled["keys"]} <= {"a", "b"}
        assert {str(key)[0] for key in unlabelled["keys"]} == {"u"}
        assert len(unlabelled["keys"]) == 4
        drawn |= set(map(str, unlabelled["keys"]))
        halves.append((list(unlabelled["keys"][:2]), list(unlabelled["keys"][2:])))
        assert {str(key)[0] for key in next(validation)["keys"]} <= {"a", "b"}
    assert len(drawn) == 6
    assert any(a != b for a, b in halves)


def test_unlabelled_cases_that_a_split_leaves_out_are_named(nnunet_folders, capsys):
    two_stream_world(nnunet_folders)
    split = nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json"
    split.write_text(json.dumps([{"train": ["a0", "b0", "u00"], "val": ["a1"]}]))
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    trainer.get_dataloaders()
    said = capsys.readouterr().out
    assert "5 cases without annotations are in no part of fold 0 of splits_final.json" in said
    assert "u05" in said


def test_weak_views_keep_intensities(nnunet_folders):
    """Nothing but space is augmented, and what lies outside the image stays known."""
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    transforms = loader.unlabelled.data_loader.transforms.transforms
    names = [type(getattr(t, "transform", t)).__name__ for t in transforms]
    assert "SpatialTransform" in names
    assert "MirrorTransform" in names
    intensities = ("Noise", "Blur", "Bright", "Contrast", "Gamma", "LowResolution", "RemoveLabel")
    assert not [name for name in names if any(word in name for word in intensities)]
    annotated = [type(getattr(t, "transform", t)).__name__ for t in loader.labelled.data_loader.transforms.transforms]
    assert all(any(word in name for name in annotated) for word in intensities), "what nnU-Net does otherwise"


def test_worker_processes_are_ended(nnunet_folders, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1)
    trainer.num_epochs = 1
    trainer.run_training()
    assert isinstance(trainer.dataloader_train, Streams)
    for loader in (trainer.dataloader_train.labelled, trainer.dataloader_train.unlabelled):
        assert not [process for process in loader._processes if process.is_alive()]
    assert (nnunet_folders.glob("nnUNet_results/*/*/fold_0/streams.png")).__next__().is_file()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert len(logged[unimos.ACCEPTED]) == len(logged["unsupervised loss"]) == 1
    assert logged[within_epochs(unimos.ACCEPTED)] == [(1.0, logged[unimos.ACCEPTED][0])]


@pytest.mark.parametrize("network", ["pyramid", "planned"])
def test_terms_in_turn_give_the_gradient_of_their_sum(nnunet_folders, network, monkeypatch):
    two_stream_world(nnunet_folders, network=network)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    query, truths = trainer.to_query_and_truth(next(trainer.get_dataloaders()[0])[0])
    terms = [lambda w=w: w * trainer.loss(trainer.network(query), truths) for w in (0.5, 0.3, 0.2)]
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    values = trainer.backward_in_turn(terms)
    in_turn = [p.grad.clone() for p in trainer.network.parameters()]
    trainer.optimizer.zero_grad()
    total = sum(term() for term in terms)
    total.backward()
    assert sum(values) == pytest.approx(total.item(), rel=1e-5)
    assert all(torch.allclose(a, p.grad, atol=1e-5) for a, p in zip(in_turn, trainer.network.parameters(), strict=True))


def test_terms_in_turn_keep_no_more_for_the_way_back_than_one(nnunet_folders, monkeypatch):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    query, truths = trainer.to_query_and_truth(next(trainer.get_dataloaders()[0])[0])
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    kept = 0  # saved tensors that are alive
    most = []

    class Saved:
        def __init__(self, tensor):
            nonlocal kept
            self.tensor, kept = tensor, kept + 1
            most[-1] = max(most[-1], kept)

        def __del__(self):
            nonlocal kept
            kept -= 1

    def step(terms):
        most.append(0)
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            trainer.backward_in_turn(terms)

    terms = [lambda: trainer.loss(trainer.network(query), truths)] * 4
    step(terms[:1])
    step(terms)
    step([lambda: sum(term() for term in terms)])
    alone, in_turn, at_once = most
    assert in_turn == alone
    assert at_once > 3.5 * alone


def test_a_scaler_changes_neither_gradient_nor_step_and_skips_what_overflows(nnunet_folders):
    """Mixed precision as on a GPU: several terms are scaled alike, unscaled once, and clipped after that."""
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    query, truths = trainer.to_query_and_truth(next(trainer.get_dataloaders()[0])[0])
    terms = [lambda w=w: w * trainer.loss(trainer.network(query), truths) for w in (0.5, 0.3, 0.2)]
    start = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    stepped = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        trainer.network.load_state_dict(start)
        trainer.optimizer.state.clear()
        trainer.grad_scaler = scaler
        trainer.backward_in_turn(terms)
        stepped.append([p.detach().clone() for p in trainer.network.parameters()])
    assert any(not torch.equal(p, start[name]) for name, p in trainer.network.named_parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*stepped, strict=True))
    trainer.network.load_state_dict(start)
    trainer.backward_in_turn([*terms, lambda: torch.inf * trainer.loss(trainer.network(query), truths)])
    assert all(torch.equal(p, start[name]) for name, p in trainer.network.named_parameters()), "skipped"
    assert trainer.grad_scaler.get_scale() == 512


def test_sources_of_more_weight_are_drawn_more_often_unlabelled_too(nnunet_folders):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    unlabelled = [case for case in trainer.table.cases if not trainer.table.known(case).any()]
    weights = dict(zip(unlabelled, (3.0, *[1.0] * (len(unlabelled) - 1)), strict=True))
    trainer.table.weight = lambda case: weights.get(case, 1.0)
    stream = trainer.get_dataloaders()[0].unlabelled.data_loader
    times = Counter(map(str, stream._data.identifiers))
    assert times[unlabelled[0]] == pytest.approx(3 * times[unlabelled[1]], abs=3)


def test_the_sum_is_weighted_and_nothing_believed_is_supervised_training(nnunet_folders, monkeypatch):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    taken = {}
    monkeypatch.setattr(trainer, "backward_in_turn", lambda terms: taken.update(terms=terms) or [2.0, 0.5, 0.25, 0.25])
    monkeypatch.setattr(unimos.Views, "accepted", 0.5)
    report = trainer.train_step(batch)
    assert report["loss"] == 3
    assert report["unsupervised loss"] == 1
    monkeypatch.setattr(unimos.Views, "perturbed", lambda _: torch.tensor(10.0))
    monkeypatch.setattr(unimos.Views, "strong", lambda _: torch.tensor(100.0))
    assert [term().item() for term in taken["terms"][1:]] == pytest.approx([2.5, 12.5, 12.5])
    query, truths = trainer.to_query_and_truth(batch[0])
    supervised = trainer.loss(trainer.network(query), truths).item()
    assert taken["terms"][0]().item() == pytest.approx(supervised / 2)
    monkeypatch.undo()
    monkeypatch.setattr(unimos, "threshold", lambda _: 1.1)
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    report = trainer.train_step(batch)
    assert report["unsupervised loss"] == 0
    assert report[unimos.ACCEPTED] == 0
    found = [p.grad.clone() for p in trainer.network.parameters() if p.grad is not None]
    trainer.optimizer.zero_grad()
    (trainer.loss(trainer.network(query), truths) / 2).backward()
    expected = [p.grad for p in trainer.network.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_views_are_turned_only_where_sides_do_not_matter(nnunet_folders):
    two_stream_world(nnunet_folders)
    assert make_trainer(nnunet_folders, UniMOSTrainer)._may_turn()
    assert not make_trainer(nnunet_folders, UniMOSTrainer_NoMirroring)._may_turn()
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.configuration_manager.configuration["spacing"] = [1.0, 0.7]
    assert not trainer._may_turn()


def test_without_unlabelled_cases_it_trains_supervised(nnunet_folders, capsys):
    two_stream_world(nnunet_folders, unlabelled=0)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    assert "Every training case is annotated for something: supervised training" in capsys.readouterr().out
    batch = next(loader)
    query, truths = trainer.to_query_and_truth(batch)
    expected = trainer.loss(trainer.network(query), truths).item()
    assert trainer.train_step(batch)["loss"] == pytest.approx(expected, rel=1e-5), "without the factor 1/2"


def test_the_weighted_nll_is_clamped():
    logits = torch.tensor([60.0, -60.0, 0.0]).view(1, 3, 1, 1)
    log_p = marginalised_log_probabilities(logits, torch.ones(1, 3, dtype=torch.bool))
    nll, weight = weighted_nll(log_p, torch.tensor([[[2]]]))
    assert nll.item() == pytest.approx(1.2 * 10 * math.log(10), rel=1e-5)
    assert weight.item() == pytest.approx(1.2)


def test_two_groups_and_unlabelled_cases_are_learnt(nnunet_folders):
    two_stream_world(nnunet_folders, unlabelled=20, labelled=6, batch_size=4, features=FEATURES, size=32)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer, initial_lr=1e-2)
    accepted, step = [], trainer.two_stream_step

    def watched(labelled, unlabelled):
        report = step(labelled, unlabelled)
        accepted.append(report[unimos.ACCEPTED])
        return report

    trainer.two_stream_step = watched
    ours = train(trainer, 250)
    found = scores(ours, np.random.default_rng(1), argmax)
    assert min(found.values()) > 0.8, found
    assert np.mean(accepted[-30:]) > np.mean(accepted[:10]), "more and more is believed"


SIZES = {"a": (5.5, 6.5), "b": (3.0, 4.0), "u": (3.0, 6.5)}  # half the side of a square, in voxels, by group


def sized_shapes(rng, group="u"):
    """An image with a square and a disc of about its area, equally bright, and its label map; both [1,32,32]."""
    radius, (y, x) = rng.uniform(*SIZES[group]), np.mgrid[:32, :32]
    corners = rng.permutation([(0, 0), (0, 16), (16, 0), (16, 16)])[:2]
    (a, b), (c, d) = corners + 8 + rng.integers(-1, 2, (2, 2))
    target = np.zeros((1, 32, 32), np.int8)
    target[:, (abs(y - a) <= radius) & (abs(x - b) <= radius)] = 1
    target[:, np.hypot(y - c, x - d) <= 1.13 * radius] = 2
    return ((target > 0) + rng.normal(0, 0.25, target.shape)).astype(np.float32), target


def dice_of_sizes(base, seed, unlabelled, steps=400):
    """Mean Dice on fresh images of every size, after a whole training in which each step is an epoch."""
    world = {"labelled": 3, "batch_size": 4, "features": FEATURES, "size": 32, "seed": seed, "draw": sized_shapes}
    two_stream_world(base, unlabelled, **world, network="planned", optimiser="RMSprop")
    trainer = make_trainer(base, UniMOSTrainer, "all", num_epochs=steps)
    step = trainer.train_step

    def counted(batch):
        report = step(batch)
        trainer.current_epoch += 1
        return report

    trainer.train_step = counted
    network = train(trainer, steps, seed)
    found = scores(network, np.random.default_rng(1000 + seed), argmax, number=60, draw=sized_shapes)
    return round(float(np.mean(list(found.values()))), 3)


def others(pseudo_labels):
    """What is believed of the next image of the batch."""
    return lambda *given: unimos.PseudoLabels(*(part.roll(1, 0) for part in pseudo_labels(*given)))


@pytest.mark.slow
def test_unlabelled_cases_teach_sizes_that_no_annotation_shows(nnunet_folders, monkeypatch):
    """Squares are annotated in large, discs in small; new images are of every size, as the unlabelled ones are."""
    supervised, together = ([dice_of_sizes(nnunet_folders, seed, cases) for seed in range(3)] for cases in (0, 24))
    assert np.mean(together) >= np.mean(supervised), f"supervised {supervised}, with unlabelled cases {together}"
    monkeypatch.setattr(unimos, "pseudo_labels", others(unimos.pseudo_labels))
    mistaught = dice_of_sizes(nnunet_folders, 0, 24)
    assert mistaught < supervised[0], f"pseudo-labels of other images {mistaught}, supervised {supervised[0]}"
