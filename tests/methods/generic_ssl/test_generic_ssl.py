"""A&D: three decoders on one encoder, diffusion, difficulty weights, pseudo-labels, and where gradients go."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import build, plans
from learning import FEATURES, argmax
from torch import nn
from worlds import NAME, SQUARE_DISC, dice, make_trainer, shapes, train, two_stream_world, write_world

from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.inference.adapt import Named, adapt_weights
from nnunetv2_conemos.methods import GenericSSLTrainer, generic_ssl
from nnunetv2_conemos.methods.generic_ssl import diffusion
from nnunetv2_conemos.methods.generic_ssl import pseudo_labels as pseudo_maps
from nnunetv2_conemos.methods.generic_ssl.difficulty import ClassDifficulty
from nnunetv2_conemos.methods.generic_ssl.loss import ClassWeightedDiceCE
from nnunetv2_conemos.methods.generic_ssl.network import AggregateDecouple, BothStreams, Noisy, against_background
from nnunetv2_conemos.methods.generic_ssl.vnet import Shape
from nnunetv2_conemos.records import Query, Truth
from nnunetv2_conemos.training.plans_facts import PLANS_KEY

WIDTHS = (32, 64, 128, 256, 512)


def published(classes=2, norm="batch"):
    shape = Shape(nn.Conv3d, WIDTHS, [[3] * 3] * 5, [[1] * 3] + [[2] * 3] * 4, norm)
    return AggregateDecouple(shape, 1, classes, range(1, classes))


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def truth(target, known=None, valid=None):
    target = torch.as_tensor(target)
    every = torch.arange(1, 4).expand(len(target), -1)
    return Truth(target, every, torch.ones(len(target), 3, dtype=torch.bool) if known is None else known, valid)


# ---- network


@pytest.mark.parametrize(("classes", "whole"), [(2, 57_891_910), (14, 57_903_466)])
def test_the_published_network_has_the_published_size(classes, whole):
    """But for layers that never get a gradient: the time of the last units, and an embedding of no time."""
    made = published(classes)
    time_of = {"encoder": sum(WIDTHS[1:]), "denoiser": sum(WIDTHS[:-1]), "stems": 2 * WIDTHS[0]}
    idle = {part: 513 * width for part, width in time_of.items()}
    embedding = 128 * 512 + 512 + 512 * 512 + 512
    assert sum(idle.values()) + embedding == 1_100_256
    assert parameters(made) == whole - 1_100_256
    if classes == 2:
        assert parameters(made.encoder) == 31_431_424 - idle["encoder"]
        assert parameters(made.denoiser) == 9_201_730 - idle["denoiser"]
        assert parameters(made.decoder) == parameters(made.reweighted) == 8_282_434
    of_decoder = dict(made.decoder.named_parameters())
    assert len(of_decoder) == 54
    for other in (made.denoiser, made.reweighted):
        found = dict(other.named_parameters())
        assert all(found[name].shape == parameter.shape for name, parameter in of_decoder.items())


def test_plans_of_five_stages_give_the_published_network():
    manager = plans(3, norm="batch", labels={"background": 0, "organ": 1})
    arguments = manager.get_configuration("tiny").configuration["architecture"]["arch_kwargs"]
    arguments |= {"n_stages": 5, "features_per_stage": list(WIDTHS), "strides": [[1] * 3] + [[2] * 3] * 4}
    arguments |= {"kernel_sizes": [[3] * 3] * 5, "n_conv_per_stage": [2] * 5, "n_conv_per_stage_decoder": [2] * 4}
    made = build(GenericSSLTrainer, manager, labels={"background": 0, "organ": 1})
    assert parameters(made) == 56_791_654


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_unequal_kernels_and_strides_are_those_of_the_plans(kind):
    made = build(GenericSSLTrainer, plans(3, kind, anisotropic=True)).eval()
    assert made.image_stem.operation.kernel_size == (1, 3, 3)
    assert made.encoder.down[0].operation.stride == (1, 2, 2)
    image = torch.randn(1, 1, 8, 16, 24)
    with torch.no_grad():
        assert [x.shape[2:] for x in made.encode(image)] == [(8, 16, 24), (8, 8, 12), (4, 4, 6)]
        assert made(image).shape == (1, 4, 8, 16, 24)


def test_a_prediction_is_one_pass_of_the_encoder_and_of_one_decoder():
    made, passed = network().eval(), []
    for name in ("encoder", "denoiser", "reweighted", "decoder"):
        getattr(made, name).register_forward_hook(lambda *_, name=name: passed.append(name))
    with torch.no_grad():
        made(torch.randn(1, 1, 16, 16))
    assert passed == ["encoder", "decoder"]


def test_features_of_the_published_network_halve_and_double():
    made = published(norm="instance").eval()
    with torch.no_grad():
        features = made.encode(torch.randn(1, 1, 32, 32, 32))
    assert [tuple(x.shape[1:]) for x in features] == [(w, *[32 // 2**i] * 3) for i, w in enumerate(WIDTHS)]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_one_pass_gives_all_three_and_each_by_itself(dim, norm):
    made = network(dim, norm=norm).eval()
    image, other = torch.randn(2, 1, *[16] * dim), torch.randn(2, 1, *[16] * dim)
    noisy = Noisy(image, torch.randn(2, 4, *[16] * dim), torch.tensor([3, 900]))
    with torch.no_grad():
        denoised, reweighted, output_labels = made(BothStreams(noisy, other))
        assert denoised.shape == reweighted.shape == output_labels.shape == (2, 4, *[16] * dim)
        assert torch.equal(denoised, made.denoise(noisy))
        assert torch.equal(reweighted, made.reweight(image))
        queried = made(Query(other, torch.arange(1, 4).expand(2, -1)))
        assert torch.allclose(against_background(output_labels), queried)
        later = made.denoise(noisy._replace(step=torch.tensor([500, 900])))
    assert not torch.allclose(later[0], denoised[0]), "the step is told"
    assert torch.allclose(later[1], denoised[1], atol=1e-5), "to each sample its own"


def network(dim=2, **options):
    torch.manual_seed(0)
    return build(GenericSSLTrainer, plans(dim, **options))


def test_only_the_decoder_of_unlabelled_images_and_the_encoder_predict():
    made, image = network().eval(), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        before = made(image)
        for part in (made.denoiser, made.reweighted, made.diffusion_stem, made.time):
            for parameter in part.parameters():
                parameter.add_(1)
        assert torch.equal(made(image), before)
        next(made.encoder.parameters()).add_(1)
        assert not torch.equal(made(image), before)


# ---- diffusion


def test_shares_of_the_map_are_the_published_ones():
    expected = {0: 0.9999, 111: 0.8736, 222: 0.5968, 333: 0.3186, 444: 0.1329, 555: 0.0433, 666: 0.0110, 777: 0.00218}
    for step, kept in (expected | {888: 3.36e-4, 999: 4.0e-5}).items():
        assert diffusion.ALPHAS_CUMPROD[step].item() == pytest.approx(kept, rel=0.01)


def test_noise_has_the_right_mean_and_variance_and_each_sample_its_own_step():
    torch.manual_seed(0)
    step = torch.tensor([0, 500, 999])
    clean = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(3, -1, 200, 200)
    noisy = diffusion.q_sample(clean, step, torch.randn(3, 2, 200, 200))
    kept = diffusion.ALPHAS_CUMPROD[step].float()
    for sign, channel in ((1, 0), (-1, 1)):
        assert torch.allclose(noisy[:, channel].mean((1, 2)), sign * kept.sqrt(), atol=0.02)
        assert torch.allclose(noisy[:, channel].var((1, 2)), 1 - kept, atol=0.02)


def test_sampling_asks_ten_steps_and_an_oracle_gives_the_map():
    torch.manual_seed(0)
    clean, queried = torch.randint(0, 2, (2, 3, 8, 8)).float() * 2 - 1, []

    def oracle(noisy, step):
        queried.append(step.tolist())
        return 3 * clean  # beyond what a map can be

    assert torch.equal(diffusion.ddim_sample(oracle, torch.randn(2, 3, 8, 8)), clean)
    assert queried == [[t, t] for t in (999, 888, 777, 666, 555, 444, 333, 222, 111, 0)]


def test_sampling_walks_the_noise_that_the_prediction_implies():
    """With a constant prediction the noise stays what it was: x_t = sqrt(kept) clean + sqrt(1 - kept) noise."""
    torch.manual_seed(0)
    noise, clean, seen = torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.3), {}

    def constant(noisy, step):
        seen[step.item()] = noisy
        return clean

    diffusion.ddim_sample(constant, noise)
    implied = (noise - math.sqrt(diffusion.ALPHAS_CUMPROD[999]) * clean) / math.sqrt(1 - diffusion.ALPHAS_CUMPROD[999])
    for step in (888, 444, 0):
        kept = diffusion.ALPHAS_CUMPROD[step]
        assert torch.allclose(seen[step], kept.sqrt() * clean + (1 - kept).sqrt() * implied, atol=1e-4), step


# ---- losses, difficulty, pseudo-labels


def random_batch(samples=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, 4, 6, 5, generator=generator)
    return logits, torch.randint(0, 4, (samples, 1, 6, 5), generator=generator)


def formula(logits, target, weight):
    """Written anew from the publication's text."""
    entropy = F.cross_entropy(logits, target[:, 0], weight)
    p, y = torch.softmax(logits, 1), F.one_hot(target[:, 0], 4).movedim(-1, 1).float()
    true, false, missed = ((a * b).sum((0, 2, 3)) for a, b in ((p, y), (p, 1 - y), (1 - p, y)))
    dice = (2 * true + 1) / (2 * true + false + missed + 1)
    return entropy, -(weight * dice)[1:].mean()


@pytest.mark.parametrize("weight", [(1, 1, 1, 1), (0.5, 2, 0.1, 1.3)])
def test_the_loss_is_cross_entropy_and_weighted_dice(weight):
    logits, target = random_batch()
    weight = torch.tensor(weight, dtype=torch.float32)
    entropy, dice = formula(logits, target, weight)
    found = ClassWeightedDiceCE()(against_background(logits), truth(target), weight)
    assert found.item() == pytest.approx((entropy + dice).item(), abs=1e-5)
    scaled = ClassWeightedDiceCE()(against_background(logits), truth(target), 3 * weight)
    assert scaled.item() == pytest.approx((entropy + 3 * dice).item(), abs=1e-5), "the scale acts on the Dice alone"
    if weight.unique().numel() == 1:
        assert ClassWeightedDiceCE()(against_background(logits), truth(target)).item() == pytest.approx(found.item())


def test_what_is_not_annotated_is_background_and_teaches_no_dice():
    logits, target = random_batch(2)
    known = torch.tensor([[True, False, True], [True, False, False]])
    stray = truth(target, known)
    shown = torch.where((target == 2) | ((target == 3) & torch.tensor([False, True]).view(2, 1, 1, 1)), 0, target)
    loss = ClassWeightedDiceCE()
    value = loss(against_background(logits), truth(shown, known))
    assert value.item() == pytest.approx(loss(against_background(logits), stray).item(), abs=1e-6)
    merged = torch.softmax(logits, 1)
    two, three = merged[:, 2].clone(), merged[1, 3].clone()
    merged[:, 0] += two
    merged[1, 0] += three
    right = merged.gather(1, shown)[:, 0].log()
    p, y = merged[:, 1:], F.one_hot(shown[:, 0], 4).movedim(-1, 1)[:, 1:]
    dice = [
        (2 * (p[s, k] * y[s, k]).sum() + 1) / (p[s, k].sum() + y[s, k].sum() + 1) for k, s in ((0, [0, 1]), (2, [0]))
    ]
    assert value.item() == pytest.approx((-right.mean() - sum(dice) / 2).item(), abs=1e-5)
    swapped = loss(against_background(logits[:, [2, 1, 0, 3]]), truth(shown, known))
    assert swapped.item() == pytest.approx(value.item(), abs=1e-5), "background and what is unknown enter together"


def test_ignored_voxels_and_unlabelled_samples_do_not_count():
    logits, target = random_batch()
    valid, known = torch.rand(target.shape) < 0.5, torch.tensor([[True] * 3, [False] * 3, [True, True, False]])
    other = torch.where(valid, logits, torch.randn_like(logits))
    other[1] = torch.randn_like(other[1])
    plain, changed = (
        ClassWeightedDiceCE()(against_background(z), truth(target, known, valid)).item() for z in (logits, other)
    )
    assert plain == pytest.approx(changed, abs=1e-6)
    nothing = ClassWeightedDiceCE()(against_background(logits), truth(target, torch.zeros(3, 3, dtype=torch.bool)))
    assert nothing.item() == 0


def test_maps_are_signed_and_zero_where_nothing_is_known():
    target = torch.tensor([[[[0, 1, 2]]]] * 2)
    known = torch.tensor([[True] * 3, [True, False, True]])
    maps = pseudo_maps.clean_maps(truth(target, known))
    assert maps[0, :, 0].T.tolist() == [[1, -1, -1, -1], [-1, 1, -1, -1], [-1, -1, 1, -1]]
    assert maps[1, :, 0].T.tolist() == [[0, -1, 0, -1], [-1, 1, 0, -1], [0, -1, 0, -1]]
    valid = torch.tensor([[[[True, False, True]]]] * 2)
    assert pseudo_maps.clean_maps(truth(target, known, valid))[:, :, 0, 1].abs().max() == 0


def test_counts_are_those_of_annotated_classes():
    target = torch.tensor([[[[0, 1, 2, 3]]], [[[1, 1, 0, 0]]]])
    found = torch.tensor([[0, 1, 1, 3], [1, 0, 2, 0]])
    logits = 20.0 * F.one_hot(found, 4).movedim(-1, 1).float()[:, :, None]
    whole = pseudo_maps.class_counts(against_background(logits), truth(target))
    assert whole.tolist() == [[2, 2, 0, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
    partly = pseudo_maps.class_counts(
        against_background(logits), truth(target, torch.tensor([[True] * 3, [True, False, True]]))
    )
    assert partly.tolist() == [[3, 2, 0, 1], [1, 1, 0, 0], [0, 1, 1, 0]], "label 2 of the second is background"
    valid = torch.tensor([[[[True, True, False, True]]]] * 2)
    assert pseudo_maps.class_counts(against_background(logits), truth(target, None, valid)).sum(1).tolist() == [5, 1, 1]


def test_difficulty_by_hand_over_three_steps():
    made = ClassDifficulty(2)
    last, learnt, forgotten, lacking = 1e-8, 0.0, 0.0, 1.0
    for true, false, missed in ((0, 0, 10), (8, 2, 2), (4, 0, 6)):
        dice = (2 * true + 1e-8) / (2 * true + false + missed + 2e-8)
        change = dice - last
        amount = change * math.log(dice / last)
        learnt = 0.98 * learnt + 0.02 * (amount if change > 0 else 0)
        forgotten = 0.98 * forgotten + 0.02 * (0 if change > 0 else amount)
        lacking, last = 0.98 * lacking + 0.02 * (1 - dice), dice
        expected = 2 * ((forgotten + 1e-8) / (learnt + 1e-8)) ** 0.2 * lacking
        found = made.update(torch.tensor([[50.0, true], [0, false], [0, missed]]))
        assert found[1].item() == pytest.approx(expected, rel=1e-3)
    before = {name: state.clone() for name, state in made.named_buffers()}
    made.update(torch.tensor([[50.0, 0], [1, 0], [1, 0]]))
    for name, state in made.named_buffers():
        assert state[1] == before[name][1], "a class that is not there says nothing"
        assert state[0] != before[name][0]


def test_a_class_that_is_never_found_weighs_as_many_as_there_are_classes_and_one_just_learnt_little():
    made = ClassDifficulty(4)
    for _ in range(30):
        weights = made.update(torch.tensor([[90.0, 0, 80, 80], [0, 0, 5, 5], [0, 20, 5, 5]]))
    assert weights[1].item() == pytest.approx(1.03 * 4, rel=0.05)
    fresh = ClassDifficulty(4).update(torch.tensor([[90.0, 0, 80, 80], [0, 0, 5, 5], [0, 20, 5, 5]]))
    assert fresh[2].item() == pytest.approx(0.03 * 4, rel=0.3)


def test_weights_of_the_unlabelled_loss_are_the_published_ones():
    for epoch, weight in ((0, 0.067), (50, 0.31), (100, 1.08), (150, 2.87), (200, 5.74), (250, 8.70), (300, 10)):
        assert generic_ssl.ramp_up(epoch / 300, 10, 1.0) == pytest.approx(weight, rel=0.02)
    assert generic_ssl.ramp_up(0.5, 10, 1 / 3) == 10


def test_smoothing_is_the_published_filter():
    point = torch.zeros(1, 2, 5, 5, 5)
    point[0, 1, 2, 2, 2] = 1
    found = pseudo_maps.smoothed(point)
    assert found[0, 0].abs().max() == 0, "each channel by itself"
    assert found.sum().item() == pytest.approx(1)
    for offset, weight in (((0, 0, 0), 0.0923), ((1, 0, 0), 0.0560), ((1, 1, 0), 0.0339), ((1, 1, 1), 0.0206)):
        assert found[0, 1, 2 + offset[0], 2 + offset[1], 2 + offset[2]].item() == pytest.approx(weight, abs=1e-4)
    assert pseudo_maps.smoothed(torch.ones(1, 1, 5, 5))[0, 0, 0, 0] < 0.8, "zero outside"


def test_a_sure_classifier_wins_and_an_unsure_one_leaves_it_to_the_diffusion():
    torch.manual_seed(0)
    supervised, every = torch.ones(3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    sure, flat = torch.zeros(1, 4, 30, 30), torch.zeros(1, 4, 30, 30)
    sure[:, 2] = 20
    maps = -torch.ones(1, 4, 30, 30)
    maps[:, 1] = 1
    assert (pseudo_maps.pseudo_labels(maps, sure, supervised, every) == 2).all()
    share = (pseudo_maps.pseudo_labels(maps, flat, supervised, every) == 1).float().mean()
    assert share > 0.9, "Gumbel noise, smoothed, rarely beats a whole map"
    assert not (pseudo_maps.pseudo_labels(maps, flat, torch.tensor([False, True, True]), every) == 1).any()
    torch.manual_seed(1)
    first = pseudo_maps.pseudo_labels(maps, flat, supervised, every)
    torch.manual_seed(1)
    assert torch.equal(first, pseudo_maps.pseudo_labels(maps, flat, supervised, every))


def test_votes_for_what_a_case_cannot_show_do_not_count():
    """Nor do they count for background, as those for a label that nobody taught do."""
    logits = torch.tensor([0.0, 1.0, 3.0, 2.0]).view(1, 4, 1, 1).expand(3, 4, 20, 20)
    maps, supervised = -torch.ones(3, 4, 20, 20), torch.tensor([True, True, True])
    maps[:, 3], maps[:, 2] = 1, 1
    possible = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    found = pseudo_maps.pseudo_labels(maps, logits, supervised, possible)
    assert set(found[0].unique().tolist()) >= {2}
    for sample, expected in ((1, 3), (2, 1)):
        assert not torch.isin(found[sample], torch.arange(1, 4)[~possible[sample]]).any()
        assert found[sample].mode().values.mode().values == expected
    never_annotated = pseudo_maps.pseudo_labels(
        maps, logits, torch.tensor([True, False, True]), torch.ones(3, 3).bool()
    )
    assert (never_annotated == 0).float().mean() > 0.8


@pytest.mark.parametrize(("classes", "vote"), [(2, 0.881), (4, 0.711), (5, 0.649), (14, 0.362)])
def test_the_bound_of_a_vote(classes, vote):
    assert pseudo_maps.largest_vote(classes) == pytest.approx(vote, abs=1e-3)


# ---- steps


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


def test_a_step_is_the_sum_of_its_losses_and_only_one_is_reweighted(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    weights, loss = [], trainer.loss

    class Recorded(nn.Module):
        def forward(self, logits, truth, weight=None):
            weights.append(weight)
            return loss(logits, truth, weight)

    trainer.loss, trainer.current_epoch = Recorded(), 500
    report = trainer.train_step(next(loader))
    assert [weight is None for weight in weights] == [True, False, True]
    assert torch.allclose(weights[1], trainer.network.difficulty.weights())
    parts = [report[name] for name in generic_ssl.GenericSSLTrainer.extras]
    assert parts[3] == pytest.approx(generic_ssl.ramp_up(0.5, 10, 1))
    assert report["loss"] == pytest.approx(parts[0] + parts[1] + parts[3] * parts[2], rel=1e-4)


def test_pulling_moves_one_decoder_towards_the_mean_of_the_others(nnunet_folders):
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


def test_a_step_pulls_by_a_hundredth(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders)
    trainer.lr_scheduler.initial_lr = 0.0  # nothing else moves
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.train_step(next(loader))
    for name, parameter in trainer.network.decoder.named_parameters():
        pulled = 0.99 * before[f"decoder.{name}"] + 0.005 * (before[f"denoiser.{name}"] + before[f"reweighted.{name}"])
        assert torch.allclose(parameter, pulled, atol=1e-7), name
    assert not torch.equal(trainer.network.decoder.state_dict()[name], before[f"decoder.{name}"])


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


def test_a_step_pulls_labels_and_learns_in_this_order(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    done, network = [], trainer.network
    for thing, name in ((network, "pull"), (network, "reweight"), (trainer, "backward_in_turn")):
        plain = getattr(thing, name)
        monkeypatch.setattr(thing, name, lambda *given, plain=plain, name=name: (done.append(name), plain(*given))[1])
    trainer.train_step(next(loader))
    assert done == ["pull", "reweight", "backward_in_turn", "reweight"], "the last is that of the labelled images"


def test_pseudo_labels_are_those_of_the_annotated_decoders(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    images, every = next(loader)[1]["data"], torch.ones(2, 2, dtype=torch.bool)
    sure = torch.zeros(2, 3, 16, 16)
    sure[:, 2] = 20
    monkeypatch.setattr(trainer.network, "reweight", lambda image: sure)
    assert (trainer._believed(images, every).target == 2).all()
    flat, certain = torch.zeros_like(sure), -torch.ones_like(sure)
    certain[:, 1] = 1
    monkeypatch.setattr(trainer.network, "reweight", lambda image: flat)
    monkeypatch.setattr(trainer.network, "denoise", lambda noisy: certain)
    assert (trainer._believed(images, every).target == 1).float().mean() > 0.8


def test_a_step_asks_tags_what_a_case_cannot_show(nnunet_folders, monkeypatch):
    """u00 is tagged as without disc: its pseudo-labels have none, whatever the network says."""
    trainer, loader, _ = ready(nnunet_folders, absent={"u00": ["disc"]})
    seen, believed = [], trainer._believed
    monkeypatch.setattr(trainer, "_believed", lambda *given: (seen.append(believed(*given)), seen[-1])[1])
    sure = torch.zeros(2, 3, 16, 16)
    sure[:, 2] = 20
    monkeypatch.setattr(trainer.network, "reweight", lambda image: sure)
    labelled, unlabelled = next(loader)
    trainer.train_step((labelled, unlabelled | {"keys": ["u01", "u00"]}))
    assert (seen[0].target[0] == 2).all()
    assert not (seen[0].target[1] == 2).any()
    assert seen[0].known.all(), "the student learns that it is not there"


def test_difficulty_is_that_of_the_denoiser(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    trainer.network.eval()  # without dropout
    seen, counts, forward = [], generic_ssl.class_counts, trainer.network.forward
    monkeypatch.setattr(generic_ssl, "class_counts", lambda z, truth: (seen.append(z.detach()), counts(z, truth))[1])
    answers = []

    def watched(query):
        found = forward(query)
        if isinstance(query, BothStreams):
            answers.extend(answer.detach() for answer in found)
        return found

    monkeypatch.setattr(trainer.network, "forward", watched)
    trainer.train_step(next(loader))
    assert torch.equal(seen[0], against_background(answers[0]))


def test_each_sample_has_its_own_noise_and_step():
    torch.manual_seed(0)
    one = truth(torch.zeros(64, 1, 8, 8, dtype=torch.long))
    noisy = generic_ssl.with_noise(torch.zeros(64, 1, 8, 8), one)
    assert len(noisy.step.unique()) > 40
    assert 0 <= noisy.step.min() < 100
    assert 900 < noisy.step.max() <= 999
    left = diffusion.ALPHAS_CUMPROD[noisy.step].sqrt().float()
    assert torch.allclose(noisy.maps[:, 0].mean((1, 2)), left, atol=0.5), "as much of the map as its own step leaves"
    assert not torch.allclose(noisy.maps[:, 0].mean((1, 2)), left.roll(1), atol=0.5)
    last = noisy.maps[noisy.step.argmax()]
    assert last.std() == pytest.approx(1, abs=0.2)
    assert abs(last.mean()) < 0.3, "nearly nothing of the map is left"


def test_units_norm_after_the_nonlinearity_and_drop_channels():
    made = network(3)
    for unit in (made.image_stem, made.encoder.blocks[0][0], made.decoder.blocks[0][0]):
        kinds = [type(module).__name__ for module in unit.after]
        assert kinds == ["ReLU", "InstanceNorm3d", "Dropout3d"]
        assert unit.after[2].p == 0.1
    assert made.encoder.down[0].after[2].p == made.decoder.up[0].after[2].p == 0
    assert made.encoder.dropout.p == made.decoder.dropout.p == made.denoiser.dropout.p == 0.5


def test_gumbel_noise_decides_where_nothing_else_does():
    torch.manual_seed(0)
    flat = torch.zeros(1, 4, 60, 60)
    found = pseudo_maps.pseudo_labels(
        flat, flat, torch.ones(3, dtype=torch.bool), torch.ones(len(flat), 3, dtype=torch.bool)
    )
    shares = torch.bincount(found.flatten(), minlength=4) / found.numel()
    assert shares.min() > 0.1


def test_the_weight_grows_within_an_epoch_too(nnunet_folders):
    trainer, loader, _ = ready(nnunet_folders)
    trainer.num_iterations_per_epoch, trainer.num_epochs = 4, 2
    weights = []
    for epoch in range(2):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        weights += [trainer.train_step(next(loader))[GenericSSLTrainer.extras[3]] for _ in range(4)]
    assert weights == pytest.approx([generic_ssl.ramp_up(step / 8, 10, 1) for step in range(8)])


def test_without_pseudo_labels_a_decoder_that_learns_from_annotations_predicts():
    made, image = network(unlabelled_weight=0).eval(), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected = against_background(made.reweight(image))
        assert torch.allclose(made(image)[:, 1:], expected)
        assert torch.allclose(made(Query(image, torch.arange(1, 4)[None])), expected)
    assert network().learns_unlabelled


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


def test_pseudo_labels_are_made_without_a_gradient_of_what_is_taught(nnunet_folders, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders)
    images, graphs, network = next(loader)[1]["data"], [], trainer.network
    every = torch.ones(2, 2, dtype=torch.bool)
    for name in ("denoise", "reweight"):
        plain = getattr(network, name)
        monkeypatch.setattr(
            network, name, lambda *a, plain=plain: (graphs.append(torch.is_grad_enabled()), plain(*a))[1]
        )
    believed = trainer._believed(images, every)
    assert len(graphs) == 11, "ten steps of the diffusion, and the classifier"
    assert not any(graphs)
    assert believed.target.shape == (2, 1, 16, 16)
    assert believed.known.all()
    assert set(believed.target.unique().tolist()) <= {0, 1, 2}
    assert trainer.supervised.tolist() == [True, True]
    trainer.supervised = np.array([True, False])
    narrowed = trainer._believed(images, every)
    assert narrowed.known.tolist() == [[True, False]] * 2
    assert set(narrowed.target.unique().tolist()) <= {0, 1}, "nobody annotates the disc in this fold"


def test_classes_in_another_order_start_fresh():
    trained, ours = network(), Named(("c", "x", "a"), ())
    torch.manual_seed(1)
    for parameter in trained.parameters():
        parameter.data += torch.randn_like(parameter)
    theirs = {name: value.clone() for name, value in trained.state_dict().items()}
    same, _ = adapt_weights(theirs, ours, network(), ours)
    assert all(torch.equal(same[name], value) for name, value in theirs.items())
    other, report = adapt_weights(theirs, Named(("a", "b", "c"), ()), network(), ours)
    changed = {name for name, value in theirs.items() if not torch.equal(other[name], value)}
    assert changed == {
        *(f"{decoder}.head.{part}" for decoder in ("denoiser", "reweighted", "decoder") for part in ("weight", "bias")),
        *(f"diffusion_stem.operation.{part}" for part in ("weight", "bias")),
    }
    assert "labels taken by name: none" in report


@pytest.mark.parametrize("teacher", ["train", "eval"])
def test_the_teacher_drops_channels_or_not(nnunet_folders, teacher, monkeypatch):
    trainer, loader, _ = ready(nnunet_folders, teacher=teacher)
    modes = []
    trainer.network.denoiser.dropout.register_forward_hook(lambda module, *_: modes.append(module.training))
    trainer.train_step(next(loader))
    assert modes == [teacher == "train"] * 10 + [True]


def test_gradients_are_clipped_only_if_asked(nnunet_folders):
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


def test_more_classes_than_the_diffusion_can_inform_are_said(nnunet_folders, capsys):
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


# ---- learning


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
    annotated = {"S": {"cases": ["a*"], "annotated": ["square", "disc"]}, "T": {"cases": ["u*"], "annotated": []}}
    made = write_world(base, cases, SQUARE_DISC, annotated, features=FEATURES)
    made["configurations"]["tiny"][PLANS_KEY] = options
    folder = base / "nnUNet_preprocessed" / NAME
    (folder / "nnUNetPlans.json").write_text(json.dumps(made))
    (folder / "splits_final.json").write_text(json.dumps([{"train": sorted(cases), "val": ["a0"]}]))


def dice_of_the_other_domain(base, seed, steps=160, shuffled=False, **options):
    """Mean over both labels of new images of the domain that nobody annotated."""
    domain_world(base, seed, **options)
    trainer = make_trainer(base, GenericSSLTrainer, num_epochs=1, num_iterations_per_epoch=steps)
    if shuffled:
        believed = trainer._believed
        trainer._believed = lambda *given: (t := believed(*given))._replace(target=t.target.roll(1, 0))
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
