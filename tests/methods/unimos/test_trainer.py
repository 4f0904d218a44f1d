"""UniMOSTrainer: what a step does with both streams, its optimiser, and that it learns."""

from functools import partial

import numpy as np
import pytest
import torch
from architectures import moved_network, plans
from learning import FEATURES, argmax, scores
from torch import nn
from worlds import make_trainer, train, two_stream_world

from nnunetv2_conemos.methods import UniMOSTrainer, UniMOSTrainer_NoMirroring
from nnunetv2_conemos.methods.unimos import pseudo_labels
from nnunetv2_conemos.methods.unimos import trainer as unimos_trainer
from nnunetv2_conemos.methods.unimos.pseudo_labels import Consistency, PseudoLabels
from nnunetv2_conemos.methods.unimos.trainer import CONFIDENT_SHARE


def test_pseudo_labels_are_those_of_the_own_dataset(nnunet_folders):
    """Those of the first half of the batch, whose weak views receive the boxes; padding is told apart."""
    two_stream_world(nnunet_folders, targets="dataset")
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    trainer.get_dataloaders()
    trainer.targets = {"u00": np.array([True, False]), "u01": np.array([False, True])}
    target = torch.zeros(4, 1, 16, 16, dtype=torch.int16)
    target[:, :, :4] = -1
    batch = {"data": target.float(), "target": target, "keys": ["u01", "u00", "u00", "u00"]}
    views = trainer._consistency(batch)
    assert views.queried.tolist() == [[False, True], [True, False]]
    assert torch.equal(views.weak.inside, views.weak.image[:, 0] == 0), "turned like the image"
    assert torch.equal(views.of_mixed.confidence > 0, views.mixed.image[:, 0] == 0)


def test_both_halves_of_a_batch_have_the_labels_that_their_tags_allow(nnunet_folders):
    two_stream_world(nnunet_folders, absent={"u00": ["disc"], "u01": ["square"]})
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    trainer.get_dataloaders()
    target = torch.zeros(4, 1, 16, 16, dtype=torch.int16)
    views = trainer._consistency({"data": target.float(), "target": target, "keys": ["u00", "u02", "u01", "u00"]})
    assert views.weak.possible.tolist() == [[True, False], [True, True]]
    assert views.mixed.possible.tolist() == [[False, True], [True, False]]
    assert not (views.of_mixed.label[0] == 1).any()
    assert not (views.of_mixed.label[1] == 2).any()


def test_the_threshold_follows_the_share_of_the_training(nnunet_folders):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    _, unlabelled = next(trainer.get_dataloaders()[0])
    for epoch, expected in ((0, 0.7), (trainer.num_epochs // 2, 0.8), (trainer.num_epochs - 1, 0.9)):
        trainer.current_epoch = epoch
        assert trainer._consistency(unlabelled).threshold == expected


@pytest.mark.parametrize("published", [False, True])
def test_only_the_published_method_weighs_classes_of_pseudo_labels(nnunet_folders, published):
    two_stream_world(nnunet_folders, published=published)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    _, unlabelled = next(trainer.get_dataloaders()[0])
    assert trainer._consistency(unlabelled).weighted == published


def test_maps_of_unlabelled_cases_cannot_leak(nnunet_folders, monkeypatch):
    two_stream_world(nnunet_folders)
    monkeypatch.setattr(unimos_trainer, "threshold", lambda _: 0.3)  # an untrained network is sure of nothing
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
    optimiser, schedule = unimos_trainer.rmsprop([nn.Parameter(torch.ones(1))], configuration, 2500)
    group = optimiser.param_groups[0]
    assert (group["momentum"], group["alpha"]) == (0.9, 0.99)
    for epoch, power in ((0, 0), (1, 1), (40, 1), (41, 2), (2499, 63)):
        schedule.step(epoch)
        assert group["lr"] == pytest.approx(5e-4 * 0.99**power)
    assert unimos_trainer.rmsprop([nn.Parameter(torch.ones(1))], plans(2).get_configuration("tiny"), 10) is None


network = partial(moved_network, UniMOSTrainer)


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


def test_the_sum_is_weighted_and_without_confident_voxels_it_is_supervised_training(nnunet_folders, monkeypatch):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    taken = {}
    monkeypatch.setattr(trainer, "backward_in_turn", lambda terms: taken.update(terms=terms) or [2.0, 0.5, 0.25, 0.25])
    monkeypatch.setattr(Consistency, "confident_share", 0.5)
    report = trainer.train_step(batch)
    assert report["loss"] == 3
    assert report["unsupervised loss"] == 1
    monkeypatch.setattr(Consistency, "perturbed", lambda _: torch.tensor(10.0))
    monkeypatch.setattr(Consistency, "strong", lambda _: torch.tensor(100.0))
    assert [term().item() for term in taken["terms"][1:]] == pytest.approx([2.5, 12.5, 12.5])
    query, truths = trainer.to_query_and_truth(batch[0])
    supervised = trainer.loss(trainer.network(query), truths).item()
    assert taken["terms"][0]().item() == pytest.approx(supervised / 2)
    monkeypatch.undo()
    monkeypatch.setattr(unimos_trainer, "threshold", lambda _: 1.1)
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: None)
    report = trainer.train_step(batch)
    assert report["unsupervised loss"] == 0
    assert report[CONFIDENT_SHARE] == 0
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


@pytest.mark.slow
def test_two_groups_and_unlabelled_cases_are_learnt(nnunet_folders):
    two_stream_world(nnunet_folders, unlabelled=20, labelled=6, batch_size=4, features=FEATURES, size=32)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer, initial_lr=1e-2)
    shares, step = [], trainer.two_stream_step

    def watched(labelled, unlabelled):
        report = step(labelled, unlabelled)
        shares.append(report[CONFIDENT_SHARE])
        return report

    trainer.two_stream_step = watched
    ours = train(trainer, 250)
    found = scores(ours, np.random.default_rng(1), argmax)
    assert min(found.values()) > 0.8, found
    assert np.mean(shares[-30:]) > np.mean(shares[:10]), "more and more voxels are confident"


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


def others(labels):
    """Pseudo-labels of the next image of the batch."""
    return lambda *given: PseudoLabels(*(part.roll(1, 0) for part in labels(*given)))


@pytest.mark.slow
def test_unlabelled_cases_teach_sizes_that_no_annotation_shows(nnunet_folders, monkeypatch):
    """Squares are annotated in large, discs in small; new images are of every size, as the unlabelled ones are."""
    supervised, together = ([dice_of_sizes(nnunet_folders, seed, cases) for seed in range(3)] for cases in (0, 24))
    assert np.mean(together) >= np.mean(supervised), f"supervised {supervised}, with unlabelled cases {together}"
    monkeypatch.setattr(pseudo_labels, "pseudo_labels", others(pseudo_labels.pseudo_labels))
    mistaught = dice_of_sizes(nnunet_folders, 0, 24)
    assert mistaught < supervised[0], f"pseudo-labels of other images {mistaught}, supervised {supervised[0]}"
