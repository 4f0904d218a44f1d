"""GenericSSLTrainer: what a step does with both streams, its options, and that it learns."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import build, plans
from learning import FEATURES, argmax
from torch import nn
from worlds import NAME, SQUARE_DISC, dice, make_trainer, shapes, train, two_stream_world, write_world

from nnunetv2_conemos.errors import InputError, SourceError
from nnunetv2_conemos.methods import GenericSSLTrainer
from nnunetv2_conemos.methods.generic_ssl import trainer as ssl_trainer
from nnunetv2_conemos.methods.generic_ssl.difficulty import ClassDifficulty, capped
from nnunetv2_conemos.methods.generic_ssl.network import BothStreams, against_background
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.records import Truth
from nnunetv2_conemos.training.checkpoints import load


def truth(target, known=None, valid=None):
    target = torch.as_tensor(target)
    every = torch.arange(1, 4).expand(len(target), -1)
    return Truth(target, every, torch.ones(len(target), 3, dtype=torch.bool) if known is None else known, valid)


def network(dim=2, **options):
    torch.manual_seed(0)
    return build(GenericSSLTrainer, plans(dim, **options))


def test_weights_of_the_unlabelled_loss_are_the_published_ones():
    for epoch, weight in ((0, 0.067), (50, 0.31), (100, 1.08), (150, 2.87), (200, 5.74), (250, 8.70), (300, 10)):
        assert ssl_trainer.ramp_up(epoch / 300, 10.0, 1.0) == pytest.approx(weight, rel=0.02)
    assert ssl_trainer.ramp_up(0.5, 10.0, 1 / 3) == 10


def ready(base, **options):
    two_stream_world(base, **options)
    torch.manual_seed(0)
    np.random.seed(0)
    trainer = make_trainer(base, GenericSSLTrainer)
    trainer.initialize()
    loader, validation = trainer.get_dataloaders()
    trainer.network.train()
    return trainer, loader, validation


REACHED = {
    "denoising": {"diffusion_stem", "time", "encoder", "denoiser"},
    "reweighted": {"image_stem", "encoder", "reweighted"},
    "unlabelled": {"image_stem", "encoder", "decoder"},
}


@pytest.mark.parametrize("term", REACHED)
def test_each_loss_reaches_its_own_parts(nnunet_folders, term, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders, norm="batch")  # right before an instance norm a bias means nothing
    labelled, unlabelled = next(loader)
    losses, loss = [], trainer.loss

    class Recorded(nn.Module):
        def forward(self, *given):
            losses.append(loss(*given))
            return losses[-1]

    trainer.loss = Recorded()
    monkeypatch.setattr(trainer, "backward_in_turn", lambda terms: [terms[0]().item()])
    trainer.two_stream_step(labelled, unlabelled)
    assert len(losses) == 3
    trainer.network.zero_grad()
    losses[list(REACHED).index(term)].backward()
    for name, parameter in trainer.network.named_parameters():
        supervised = name.split(".")[0] in REACHED[term] and (term == "denoising" or ".time." not in name)
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == supervised, name


@pytest.mark.parametrize("difficulty", ["capped", "published", "none"])
def test_a_step_is_the_sum_of_its_losses_and_only_one_is_reweighted(nnunet_folders, difficulty, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders, unlabelled_weight=10.0, difficulty=difficulty)
    weights, loss = [], trainer.loss

    class Recorded(nn.Module):
        def forward(self, logits, truth, weight=None):
            weights.append(weight)
            return loss(logits, truth, weight)

    trainer.loss, trainer.current_epoch = Recorded(), 500
    report = trainer.train_step(next(loader))
    assert [weight is None for weight in weights] == [True, difficulty == "none", True]
    if difficulty != "none":
        published = trainer.network.difficulty.weights()
        assert torch.allclose(weights[1], published if difficulty == "published" else capped(published))
    parts = [report[name] for name in ssl_trainer.GenericSSLTrainer.extras]
    assert parts[3] == pytest.approx(ssl_trainer.ramp_up(0.5, 10.0, 1.0))
    assert report["loss"] == pytest.approx(parts[0] + parts[1] + parts[3] * parts[2], rel=1e-4)


def test_the_moving_average_is_of_the_two_other_decoders(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders, norm="batch")
    trainer.train_step(next(loader))
    network = trainer.network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    statistics = {name: b.clone() for name, b in network.decoder.named_buffers()}
    assert statistics, "of the batch norms"
    network.ema_update(0.99)
    for name, parameter in network.decoder.named_parameters():
        pulled = 0.99 * before[f"decoder.{name}"] + 0.005 * (before[f"denoiser.{name}"] + before[f"reweighted.{name}"])
        assert torch.allclose(parameter, pulled, atol=1e-7), name
    assert all(torch.equal(statistics[name], b) for name, b in network.decoder.named_buffers())
    for name, parameter in network.named_parameters():
        if not name.startswith("decoder."):
            assert torch.equal(parameter, before[name])


def test_a_step_moves_the_average_by_a_hundredth(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders, pull="constant")
    trainer.lr_scheduler.initial_lr = 0.0  # nothing else moves
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.train_step(next(loader))
    for name, parameter in trainer.network.decoder.named_parameters():
        pulled = 0.99 * before[f"decoder.{name}"] + 0.005 * (before[f"denoiser.{name}"] + before[f"reweighted.{name}"])
        assert torch.allclose(parameter, pulled, atol=1e-7), name
    assert not torch.equal(trainer.network.decoder.state_dict()[name], before[f"decoder.{name}"])


@pytest.mark.parametrize("pull", ["learning_rate", "constant"])
def test_the_pull_falls_with_the_learning_rate_or_stays(nnunet_folders, pull, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders, pull=pull)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 4
    trainer.lr_scheduler.max_steps = 1
    kept = []
    monkeypatch.setattr(trainer.network, "ema_update", kept.append)
    for _ in range(4):
        trainer.train_step(next(loader))
    falling = [(1 - done) ** 0.9 for done in (0, 0.25, 0.5, 0.75)]
    assert kept == pytest.approx([1 - 0.01 * (rate if pull == "learning_rate" else 1) for rate in falling])


def test_the_rate_falls_with_each_step_as_the_weight_rises(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 4
    trainer.lr_scheduler.max_steps = 1
    rates, weights = [], []
    for _ in range(4):
        report = trainer.train_step(next(loader))
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        weights.append(report["weight of the unlabelled loss"])
    assert rates == pytest.approx([0.01 * (1 - done) ** 0.9 for done in (0, 0.25, 0.5, 0.75)])
    assert weights == sorted(weights)
    assert weights[0] < weights[-1]


def test_without_weight_no_unlabelled_image_is_drawn(nnunet_folders, capsys):
    trainer, loader, _ = ready(nnunet_folders, unlabelled_weight=0.0)
    labelled, unlabelled = next(loader)
    assert unlabelled == {}
    assert {str(key)[0] for key in labelled["keys"]} <= {"a", "b"}
    assert np.isfinite(trainer.train_step((labelled, unlabelled))["loss"])


def test_a_checkpoint_carries_the_difficulty(nnunet_folders, tmp_path):
    trainer, loader, _ = ready(nnunet_folders)
    trainer.train_step(next(loader))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    fresh = make_trainer(nnunet_folders, GenericSSLTrainer)
    fresh.initialize()
    fresh.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    states = dict(fresh.network.difficulty.named_buffers())
    assert set(states) == {"last", "learnt", "forgotten", "lacking"}
    for name, state in trainer.network.difficulty.named_buffers():
        assert torch.equal(states[name], state)
        if name != "forgotten":
            assert not torch.equal(state, dict(ClassDifficulty(3).named_buffers())[name])


def test_a_step_averages_labels_and_learns_in_this_order(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    done, network = [], trainer.network
    for thing, name in ((network, "ema_update"), (network, "reweight"), (trainer, "backward_in_turn")):
        plain = getattr(thing, name)
        monkeypatch.setattr(thing, name, lambda *given, plain=plain, name=name: (done.append(name), plain(*given))[1])
    trainer.train_step(next(loader))
    assert done == ["ema_update", "reweight", "backward_in_turn", "reweight"], "the last is that of the labelled images"


def test_pseudo_labels_are_those_of_the_annotated_decoders(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    images, every = next(loader)[1]["data"], torch.ones(2, 2, dtype=torch.bool)
    sure = torch.zeros(2, 3, 16, 16)
    sure[:, 2] = 20
    monkeypatch.setattr(trainer.network, "reweight", lambda image: sure)
    assert (trainer.pseudo_truth(images, every, True).target == 2).all()
    flat, certain = torch.zeros_like(sure), -torch.ones_like(sure)
    certain[:, 1] = 1
    monkeypatch.setattr(trainer.network, "reweight", lambda image: flat)
    monkeypatch.setattr(trainer.network, "denoise", lambda noisy: certain)
    assert (trainer.pseudo_truth(images, every, True).target == 1).float().mean() > 0.8
    assert (trainer.pseudo_truth(images, every, False).target == 0).all(), "without a vote of the diffusion"


def test_the_diffusion_votes_while_it_is_right_on_annotated_cases(nnunet_folders, monkeypatch):
    """It is looked at every 25 steps; where it has no vote, its ten passes are saved."""
    trainer, loader, _ = ready(nnunet_folders)
    network, passes = trainer.network, []
    annotated, unlabelled = next(loader)
    right = 2.0 * F.one_hot(annotated["target"][:, 0].long(), 3).movedim(-1, 1) - 1
    wrong = 2.0 * F.one_hot(torch.zeros(2, 16, 16, dtype=torch.long), 3).movedim(-1, 1) - 1  # nothing but background
    sampled = wrong
    monkeypatch.setattr(network, "sampled_maps", lambda images: (passes.append(images), sampled)[1])
    votes = []
    for step in range(52):
        if step == 25:
            sampled = right
        votes.append(trainer.train_step((annotated, unlabelled))["votes of the diffusion"])
    assert votes == [0.0] * 25 + votes[25:]
    assert votes[-1] == 1
    looks = [images for images in passes if torch.equal(images, annotated["data"])]
    assert len(looks) == 3, "at steps 0, 25 and 50"
    assert len(passes) - len(looks) == sum(votes)


def test_the_published_diffusion_votes_always(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders, diffusion="always")
    assert trainer.train_step(next(loader))["votes of the diffusion"] == 1


def test_the_final_checkpoint_is_the_best_on_validation_cases_or_the_last(nnunet_folders):
    for option, best in (("best", True), ("last", False)):
        trainer, *_ = ready(nnunet_folders, checkpoint=option)
        for name in ("checkpoint_best.pth", "checkpoint_latest.pth"):
            trainer.save_checkpoint(f"{trainer.output_folder}/{name}")
            for parameter in trainer.network.parameters():
                parameter.data += 1
        kept = load(Path(trainer.output_folder) / "checkpoint_best.pth")["network_weights"]
        trainer.on_train_end()
        final = load(Path(trainer.output_folder) / "checkpoint_final.pth")["network_weights"]
        assert torch.equal(final["decoder.head.weight"], kept["decoder.head.weight"]) == best
        assert torch.equal(final["decoder.head.weight"], trainer.network.state_dict()["decoder.head.weight"])


def test_instance_norms_are_refused_before_anything_is_made(nnunet_folders):
    two_stream_world(nnunet_folders, norm="instance")
    with pytest.raises(InputError, match=r"norm: 'instance' is no longer trained.*Use 'group', or 'auto'"):
        make_trainer(nnunet_folders, GenericSSLTrainer)
    assert not list((nnunet_folders / "nnUNet_results").iterdir())


def test_tags_rule_out_pseudo_labels_of_a_step(nnunet_folders, monkeypatch):
    """u00 is tagged as without disc: its pseudo-labels have none, whatever the network says."""
    trainer, loader, _ = ready(nnunet_folders, absent={"u00": ["disc"]})
    seen, believed = [], trainer.pseudo_truth
    monkeypatch.setattr(trainer, "pseudo_truth", lambda *given: (seen.append(believed(*given)), seen[-1])[1])
    sure = torch.zeros(2, 3, 16, 16)
    sure[:, 2] = 20
    monkeypatch.setattr(trainer.network, "reweight", lambda image: sure)
    labelled, unlabelled = next(loader)
    trainer.train_step((labelled, unlabelled | {"keys": ["u01", "u00"]}))
    assert (seen[0].target[0] == 2).all()
    assert not (seen[0].target[1] == 2).any()
    assert seen[0].known.all(), "the student learns that it is not there"


def test_difficulty_is_that_of_the_denoiser(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders, diffusion="always")
    trainer.network.eval()  # without dropout
    seen, counts, forward = [], ssl_trainer.class_counts, trainer.network.forward
    monkeypatch.setattr(ssl_trainer, "class_counts", lambda z, truth: (seen.append(z.detach()), counts(z, truth))[1])
    answers = []

    def watched(query):
        found = forward(query)
        if isinstance(query, BothStreams):
            answers.extend(answer.detach() for answer in found)
        return found

    monkeypatch.setattr(trainer.network, "forward", watched)
    trainer.train_step(next(loader))
    assert torch.equal(seen[0], against_background(answers[0]))


def test_the_weight_grows_within_an_epoch_too(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders)
    trainer.num_iterations_per_epoch, trainer.num_epochs = 4, 2
    weights = []
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        weights += [trainer.train_step(next(loader))[GenericSSLTrainer.extras[3]] for _ in range(4)]
    assert weights == pytest.approx([ssl_trainer.ramp_up(step / 8, 1.5, 1.0) for step in range(8)])


def test_streams_are_annotated_and_unlabelled_and_both_are_augmented_alike(nnunet_folders):
    _, loader, _ = ready(nnunet_folders)
    for _ in range(10):
        labelled, unlabelled = next(loader)
        assert {str(key)[0] for key in labelled["keys"]} <= {"a", "b"}
        assert {str(key)[0] for key in unlabelled["keys"]} == {"u"}
        assert len(labelled["keys"]) == len(unlabelled["keys"]) == 2
    transforms = [
        [type(getattr(t, "transform", t)).__name__ for t in stream.data_loader.transforms.transforms]
        for stream in (loader.labelled, loader.unlabelled)
    ]
    assert transforms[0] == transforms[1]


def test_maps_of_unlabelled_cases_cannot_leak(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders)
    labelled, unlabelled = next(loader)
    state = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    losses = []
    for poison in (0, 1, 2):
        trainer.network.load_state_dict(state)
        trainer.optimizer.state.clear()
        trainer.steps_in_epoch = 0
        torch.manual_seed(7)
        poisoned = unlabelled | {"target": torch.full_like(torch.as_tensor(unlabelled["target"]), poison)}
        losses.append(float(trainer.train_step((labelled, poisoned))["loss"]))
    assert losses[0] == losses[1] == losses[2]


def test_pseudo_labels_are_supervised_labels_and_have_no_gradient(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    images, graphs, network = next(loader)[1]["data"], [], trainer.network
    every = torch.ones(2, 2, dtype=torch.bool)
    for name in ("denoise", "reweight"):
        plain = getattr(network, name)
        monkeypatch.setattr(
            network, name, lambda *a, plain=plain: (graphs.append(torch.is_grad_enabled()), plain(*a))[1]
        )
    believed = trainer.pseudo_truth(images, every, True)
    assert len(graphs) == 11, "ten steps of the diffusion, and the classifier"
    assert not any(graphs)
    assert believed.target.shape == (2, 1, 16, 16)
    assert believed.known.all()
    assert set(believed.target.unique().tolist()) <= {0, 1, 2}
    assert trainer.supervised.tolist() == [True, True]
    trainer.supervised = np.array([True, False])
    narrowed = trainer.pseudo_truth(images, every, True)
    assert narrowed.known.tolist() == [[True, False]] * 2
    assert set(narrowed.target.unique().tolist()) <= {0, 1}, "nobody annotates the disc in this fold"


@pytest.mark.parametrize("teacher", ["train", "eval"])
def test_the_teacher_drops_channels_or_not(nnunet_folders, teacher, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders, teacher=teacher, diffusion="always")
    modes = []
    trainer.network.denoiser.dropout.register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer.train_step(next(loader))
    assert modes == [teacher == "train"] * 10 + [True]


def test_gradients_are_clipped_only_with_the_option(nnunet_folders):
    assert ready(nnunet_folders)[0].largest_norm == math.inf
    assert ready(nnunet_folders, clip=True)[0].largest_norm == 12


def test_without_unlabelled_cases_it_is_refused_before_anything_is_made(nnunet_folders):
    two_stream_world(nnunet_folders, unlabelled=0)
    with pytest.raises(
        SourceError, match=r"GenericSSLTrainer learns from cases that are not annotated.*use UniMOSTrainer"
    ):
        make_trainer(nnunet_folders, GenericSSLTrainer)
    assert not list((nnunet_folders / "nnUNet_results").iterdir())


def test_a_fold_without_unlabelled_cases_is_refused(nnunet_folders):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, GenericSSLTrainer)
    fold = {"train": ["a0", "a1", "b0", "b1"], "val": ["a2", "b2"]}
    (nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json").write_text(json.dumps([fold]))
    trainer.initialize()
    with pytest.raises(SourceError, match="none of the training cases is one"):
        trainer.get_dataloaders()


def test_more_classes_than_the_diffusion_can_label_are_logged(nnunet_folders, capsys):
    trainer, *_ = ready(nnunet_folders)
    assert "of its vote" not in capsys.readouterr().out
    trainer.network.classes = 14
    trainer.get_dataloaders()
    said = "14 classes: before the Gumbel noise, the diffusion gives no class more than 0.36 of its vote"
    assert said in capsys.readouterr().out


def test_the_published_optimiser_or_nnunets(nnunet_folders):
    trainer, *_ = ready(nnunet_folders)
    group = trainer.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (1e-2, 0.9, True, 3e-5)
    assert len(list(trainer.network.parameters())) == len(group["params"])
    assert ready(nnunet_folders, optimiser="nnU-Net")[0].optimizer.param_groups[0]["momentum"] == 0.99


def of_domain(rng, shifted, size=32):
    """In the domain without annotations images are darker on one side, from a random direction."""
    image, target = shapes(rng, size)
    if shifted:
        (y, x), angle = np.mgrid[:size, :size] / size, rng.uniform(0, 2 * np.pi)
        image = 0.7 * image + 1.2 * (np.cos(angle) * x + np.sin(angle) * y)
    return image.astype(np.float32), target


def domain_world(base, seed, **options):
    rng = np.random.default_rng(seed)
    cases = {f"a{i}": of_domain(rng, False) for i in range(4)}
    cases |= {f"u{i:02d}": (of_domain(rng, True)[0], np.zeros((1, 32, 32), np.int8)) for i in range(16)}
    training, held_out = sorted(cases), {"v0": of_domain(rng, False)}
    annotated = {"S": {"cases": ["a*", "v0"], "annotated": ["square", "disc"]}, "T": {"cases": ["u*"], "annotated": []}}
    made = write_world(base, cases | held_out, SQUARE_DISC, annotated, features=FEATURES)
    made["configurations"]["tiny"][PLANS_KEY] = options
    folder = base / "nnUNet_preprocessed" / NAME
    (folder / "nnUNetPlans.json").write_text(json.dumps(made))
    (folder / "splits_final.json").write_text(json.dumps([{"train": training, "val": sorted(held_out)}]))


def dice_of_the_other_domain(base, seed, steps=160, shuffled=False, **options):
    """Mean over both labels of new images of the domain that nobody annotated."""
    domain_world(base, seed, **options)
    trainer = make_trainer(base, GenericSSLTrainer, num_epochs=1, num_iterations_per_epoch=steps)
    if shuffled:
        believed = trainer.pseudo_truth
        trainer.pseudo_truth = lambda *given: (t := believed(*given))._replace(target=t.target.roll(1, 0))
    network, rng, found = train(trainer, steps, seed), np.random.default_rng(1000 + seed), []
    for _ in range(12):
        image, target = of_domain(rng, True)
        with torch.no_grad():
            predicted = argmax(network(torch.from_numpy(image)[None]))
        found += [dice(predicted == label, target[0] == label) for label in (1, 2)]
    return float(np.mean(found))


@pytest.mark.slow
def test_a_decoder_that_never_saw_an_annotation_comes_near_one_that_did(nnunet_folders):
    """Three trainings each; "alone" is the decoder that the same network teaches with annotations, without the others.

    No gain is asserted: on this toy there was none.
    """
    ours = [dice_of_the_other_domain(nnunet_folders, seed) for seed in range(3)]
    alone = [dice_of_the_other_domain(nnunet_folders, seed, unlabelled_weight=0) for seed in range(3)]
    shuffled = [dice_of_the_other_domain(nnunet_folders, seed, shuffled=True) for seed in range(3)]
    print(f"with unlabelled cases {ours}, annotations alone {alone}, shuffled pseudo-labels {shuffled}")
    assert np.mean(ours) > np.mean(alone) - 0.1, (ours, alone)
    assert np.mean(shuffled) < np.mean(alone) / 2, (shuffled, alone)
