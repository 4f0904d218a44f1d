"""Activation maps, their transforms and the terms of the loss of CMERTrainer, against what was published."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunetv2_conemos.methods.cmer import augment as warps
from nnunetv2_conemos.methods.cmer.loss import (
    Seen,
    Tags,
    classification,
    cross_modality,
    distance,
    equivariance,
    exchange,
    unit,
)
from nnunetv2_conemos.methods.cmer.network import Activation, CAMNetworks, CAMUNet, Views, max_norm, standardised

E = 1e-12


# ---- network


@pytest.mark.parametrize(("divisor", "parameters"), [(1, 3_398_144), (4, 213_632)])
def test_the_published_networks_have_as_many_parameters(divisor, parameters):
    assert sum(p.numel() for p in CAMUNet(2, 64 // divisor).parameters()) == parameters


@pytest.mark.parametrize("size", [(24, 24), (16, 40), (21, 30)], ids=str)
def test_maps_are_of_full_resolution_and_their_means_are_the_logits(size):
    networks = CAMNetworks(3, 2, True, (1, 2), width=8).eval()
    image = torch.randn(2, 3, *size)
    activation = networks.activation(image)
    assert activation.maps.shape == (2, 3, 2, *size)
    one = networks.networks[1](standardised(image)[:, 1:2])
    assert one.shape == (2, 4, *size)
    assert torch.allclose(activation.logits[:, 1].flatten(1), one.mean((-2, -1)), atol=1e-6)
    assert torch.allclose(activation.maps[:, 1, 1], max_norm(one[:, 3]))


def test_grad_cam_is_the_activation_map():
    network = CAMUNet(2, 8).eval()
    features = network.backbone(torch.randn(1, 8, 16, 16)).detach().requires_grad_()
    cam = network.classifier(features)
    (gradient,) = torch.autograd.grad(cam[0, 1].mean(), features)
    grad_cam = (gradient.sum((-2, -1), keepdim=True) * features).sum(1)[0]
    assert torch.allclose(max_norm(grad_cam), max_norm(cam[0, 1]), atol=1e-5)


def test_only_the_own_channel_is_seen_and_brightness_does_not_matter():
    networks = CAMNetworks(2, 1, True, (1,), width=8).eval()
    image = torch.randn(2, 2, 16, 16)
    changed = image.clone()
    changed[:, 1] = torch.randn(2, 16, 16)
    a, b, brighter = (networks.activation(x).logits for x in (image, changed, 3 * image + 5))
    assert torch.equal(a[:, 0], b[:, 0])
    assert not torch.equal(a[:, 1], b[:, 1])
    assert torch.allclose(a, brighter, atol=1e-5)
    assert torch.isfinite(networks.activation(torch.ones(2, 2, 16, 16)).logits).all()


def test_each_view_has_its_own_statistics_in_training():
    networks = CAMNetworks(1, 1, True, (1,), width=8).train()
    views = Views(torch.randn(3, 1, 16, 16), torch.rand(3, 1, 24, 24) ** 3)
    apart = copy.deepcopy(networks)
    first, second = networks(views)
    assert torch.equal(first.maps, apart.activation(views.first).maps)
    assert torch.equal(second.logits, apart.activation(views.second).logits)
    assert second.maps.shape[-2:] == (24, 24)


@pytest.mark.parametrize("fusion", ["mean", "max", 1])
def test_the_answer_is_positive_where_the_fused_activation_exceeds_the_threshold(fusion):
    networks = CAMNetworks(2, 2, True, (1, 2), width=8, fusion=fusion).eval()
    networks.threshold[:] = torch.tensor([0.3, 0.6])
    given = Activation(torch.randn(8, 2, 2, 2), torch.rand(8, 2, 2, 16, 16))
    networks.activation = lambda _: given
    maps, found, heads = given.maps, given.found, networks(torch.empty(8, 2, 16, 16))
    seen = maps * found[..., None, None]
    fused = {"mean": seen.mean(1), "max": seen.amax(1), 1: seen[:, 1]}[fusion]
    assert torch.equal(heads[:, 1:] > 0, fused > torch.tensor([0.3, 0.6])[:, None, None])
    assert heads[:, 0].abs().max() == 0
    absent = ~(found[:, 1] if fusion == 1 else found.any(1))
    assert absent.any()
    assert (heads[:, 1:][absent] < 0).all(), "a slice without a label has no voxel of it"


# ---- max-norm


def test_maps_are_stretched_each_by_itself():
    maps = torch.randn(2, 3, 8, 8) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    normalised = max_norm(maps)
    assert normalised.min() >= 0
    assert torch.allclose(normalised.amax((-2, -1)), torch.ones(2, 3), atol=1e-3)
    assert torch.equal(max_norm(maps[:, 1]), normalised[:, 1])


def test_an_empty_map_stays_empty_and_has_a_finite_gradient():
    leaf = (-torch.rand(1, 1, 8, 8)).requires_grad_()
    normalised = max_norm(leaf)
    normalised.sum().backward()
    assert normalised.abs().max() == 0
    assert torch.isfinite(leaf.grad).all()


def test_maps_are_normalised_in_full_precision_under_autocast():
    networks = CAMNetworks(2, 1, True, (1,), width=8).eval()
    image = torch.randn(2, 2, 16, 16)
    raw = torch.randn(2, 8, 8).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normalised, activation = max_norm(raw), networks.activation(image)
    assert torch.equal(normalised, max_norm(raw.float()))
    assert activation.maps.dtype == activation.logits.dtype == torch.float32
    assert torch.isfinite(activation.maps).all()


# ---- transforms

IMAGE = F.interpolate(torch.rand(4, 2, 6, 6, generator=torch.Generator().manual_seed(0)), (48, 48), mode="bicubic")


@pytest.mark.parametrize("family", warps.FAMILIES)
def test_a_pointwise_network_is_equivariant_and_a_mismatch_is_seen(family):
    torch.manual_seed(2)
    warp, other = (warps.drawn([family], 4, (48, 48)) for _ in range(2))
    while str(other) == str(warp) or (family == "flip" and other.axis == warp.axis):
        other = warps.drawn([family], 4, (48, 48))
    maps = (IMAGE * 0.3)[:, :, None]  # [B,M,K,H,W]
    warped, of_warped = warp(maps), (warp(IMAGE) * 0.3)[:, :, None]
    tags = Tags(torch.ones(4, 1).bool(), torch.ones(4, 1).bool())
    logits = torch.zeros(4, 2, 1, 2)
    assert equivariance(Seen(logits, logits, warped, of_warped), tags).max() < 1e-10
    if warped.shape == other(maps).shape:
        assert equivariance(Seen(logits, logits, other(maps), of_warped), tags).min() > 1e-4


def test_rotations_are_exact_and_drawn_per_sample():
    turned = warps.Rotation((1, 2, 3, 1))(IMAGE)
    assert torch.equal(turned[2], torch.rot90(IMAGE[2], 3, (1, 2)))
    assert torch.equal(warps.Rotation((3, 2, 1, 3))(turned), IMAGE)
    assert warps.drawn(["rotation"], 2, (16, 24)).times == (2, 2)
    assert len(set(warps.drawn(["rotation"], 64, (16, 16)).times)) == 3


def test_translations_move_the_content_down_and_right_and_fill_with_zeros():
    shifts = torch.tensor([[0.25, 0.0], [0.0, -0.25], [0.25, 0.5], [0.0, 0.0]])
    moved = warps.Translation(shifts)(IMAGE)
    assert torch.allclose(moved[0, :, 12:], IMAGE[0, :, :36], atol=1e-5)
    assert moved[0, :, :11].abs().max() == 0
    assert torch.allclose(moved[1, :, :, :36], IMAGE[1, :, :, 12:], atol=1e-5)
    assert torch.allclose(moved[2, :, 12:, 24:], IMAGE[2, :, :36, :24], atol=1e-5)
    assert torch.allclose(moved[3], IMAGE[3], atol=1e-5)


def test_every_family_is_drawn_and_sizes_are_those_published():
    torch.manual_seed(0)
    found = [warps.drawn(warps.FAMILIES, 2, (240, 240)) for _ in range(400)]
    kinds = [type(warp) for warp in found]
    assert all(70 < kinds.count(kind) < 130 for kind in (warps.Flip, warps.Rotation, warps.Translation, warps.Scaling))
    sides = {warp.size[0] for warp in found if isinstance(warp, warps.Scaling)}
    assert sides == set(range(192, 289, 8))
    shifts = torch.cat([warp.shifts for warp in found if isinstance(warp, warps.Translation)])
    assert 0.25 < shifts.abs().max() <= 0.3


# ---- terms, M channels, B samples, K labels


def case(channels=2, samples=4, labels=1, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first, second = (drawn(samples, channels, labels, 2).requires_grad_() for _ in range(2))
    warped, maps = (drawn(samples, channels, labels, size, size).abs().requires_grad_() for _ in range(2))
    present = torch.rand(samples, labels, generator=generator) < 0.7
    return Seen(first, second, warped, maps), Tags(present, torch.ones_like(present))


def published(p, q, c, c2, y, i):
    """Section by section as written for one label: logits [B,M,2], maps [B,M,1,H,W], tags [B]; losses of channel i."""
    M = p.shape[1]
    yy = y.view(-1, 1, 1, 1).to(c)
    L_C = (F.cross_entropy(p[:, i], y.long()) + F.cross_entropy(q[:, i], y.long())) / 2
    L_ER = (yy * (c[:, i] - c2[:, i]) ** 2).mean()

    def d(a, b, m):
        na, nb = ((z + E).flatten(2).norm(dim=2)[..., None, None] for z in (a, b))
        return (m.view(-1, 1, 1, 1) * (a / na - b / nb) ** 2).mean()

    L_CM, L_KL, T = 0, 0, 10
    for j in range(M):
        if j != i:
            m_p, m_q = (yy.flatten() * (z[:, j].argmax(1) == 1) for z in (p, q))
            L_CM = L_CM + (d(c[:, i], c2[:, j].detach(), m_q) + d(c2[:, i], c[:, j].detach(), m_p)) / 2 / (M - 1)
            for z in (p, q):
                kl = F.kl_div(F.log_softmax(z[:, i] / T, 1), F.softmax(z[:, j].detach() / T, 1), reduction="batchmean")
                L_KL = L_KL + T**2 * kl / 2 / (M - 1)
    return L_C, L_ER, L_CM, L_KL


@pytest.mark.parametrize("channels", [2, 4])
def test_with_one_label_the_terms_are_those_published(channels):
    seen, tags = case(channels, samples=6)
    ours = classification(seen, tags), equivariance(seen, tags), cross_modality(seen, tags), exchange(seen, tags)
    for i in range(channels):
        p, q = seen.first[:, :, 0], seen.second[:, :, 0]
        theirs = published(p, q, seen.warped, seen.maps, tags.present[:, 0], i)
        for term, (mine, their) in enumerate(zip((t[i] for t in ours), theirs, strict=True)):
            assert mine.item() == pytest.approx(their.item(), rel=1e-12), term
            leaves = [seen.first, seen.second, seen.warped, seen.maps]
            grads = [torch.autograd.grad(x, leaves, retain_graph=True, allow_unused=True) for x in (mine, their)]
            for a, b in zip(*grads, strict=True):
                assert (a is None or a.abs().max() == 0) if b is None else torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_equivariance_ignores_slices_without_the_label_and_reaches_both_views():
    seen, _ = case()
    tags = Tags(torch.tensor([[True], [False], [False], [True]]), torch.ones(4, 1).bool())
    loss = equivariance(seen, tags).sum()
    for grad in torch.autograd.grad(loss, [seen.warped, seen.maps]):
        assert grad[[1, 2]].abs().max() == 0
        assert (grad[[0, 3]].abs().amax((1, 2, 3, 4)) > 0).all()
    half = Seen(seen.first, seen.second, seen.warped, seen.maps.detach())
    (full,) = torch.autograd.grad(equivariance(seen, tags).sum(), seen.warped)
    assert torch.allclose(torch.autograd.grad(equivariance(half, tags).sum(), seen.warped)[0], full)


def test_the_cross_modality_term_pairs_the_views_crosswise():
    """Channel 0 in one view is compared with channel 1 in the other: alike crosswise is 0, alike in a view is not."""
    a, b = torch.rand(1, 1, 6, 6), torch.rand(1, 1, 6, 6)
    sure = torch.tensor([0.0, 1.0]).expand(1, 2, 1, 2)
    tags = Tags(torch.ones(1, 1).bool(), torch.ones(1, 1).bool())
    crosswise = Seen(sure, sure, torch.stack((a, b), 1), torch.stack((b, a), 1))
    straight = Seen(sure, sure, torch.stack((a, a), 1), torch.stack((b, b), 1))
    assert cross_modality(crosswise, tags, "sum").abs().max() < 1e-10
    assert cross_modality(straight, tags, "sum").min() > 1e-2


@pytest.mark.parametrize("term", [cross_modality, exchange])
@pytest.mark.parametrize("learner", [0, 1, 2])
def test_no_gradient_reaches_a_teacher(term, learner):
    seen, tags = case(3)
    grads = torch.autograd.grad(term(seen, tags)[learner], seen[:2] if term is exchange else seen[2:])
    others = [channel for channel in range(3) if channel != learner]
    for grad in grads:
        assert grad[:, others].abs().max() == 0
        assert grad[:, learner].abs().max() > 0


def test_the_cross_modality_term_needs_the_label_and_a_teacher_that_sees_it():
    seen, _ = case(samples=2)
    yes, no = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    here, absent = (Tags(torch.full((2, 1), v), torch.ones(2, 1).bool()) for v in (True, False))

    def of(first, second, tags=here):
        logits = [torch.stack(pair).view(1, 2, 1, 2).expand(2, 2, 1, 2) for pair in (first, second)]
        return cross_modality(Seen(*logits, seen.warped, seen.maps), tags).tolist()

    both = of((yes, yes), (yes, yes))
    assert min(both) > 0
    assert of((yes, yes), (yes, yes), absent) == [0, 0]
    assert of((no, no), (no, no)) == [0, 0]
    supervised, teacher = of((yes, no), (yes, no))
    assert supervised == 0, "channel 1 says absent in both views, so channel 0 learns nothing of it"
    assert teacher == pytest.approx(both[1])
    only_second = of((no, no), (yes, yes))
    assert 0 < only_second[0] < both[0], "the second view teaches the first"


def test_the_distance_is_a_cosine_whatever_the_scale():
    a, b = torch.rand(2, 1, 5, 7, dtype=torch.float64), torch.rand(2, 1, 5, 7, dtype=torch.float64)
    tags = Tags(torch.ones(2, 1).bool(), torch.ones(2, 1).bool())
    counted = torch.ones(2, 1).bool()
    total = distance(a, b, counted, tags, "sum")
    cosine = F.cosine_similarity(a.flatten(1), b.flatten(1))
    assert total.item() == pytest.approx((2 - 2 * cosine).mean().item())
    assert distance(a, b, counted, tags, "mean").item() == pytest.approx(total.item() / 35)
    assert distance(5 * a, 0.1 * b, counted, tags, "sum").item() == pytest.approx(total.item())


def test_empty_maps_are_finite_in_value_and_gradient():
    seen, tags = case()
    leaf = (-torch.rand(4, 2, 1, 6, 6)).requires_grad_()
    sure = torch.tensor([0.0, 1.0]).expand(4, 2, 1, 2)
    loss = cross_modality(Seen(sure, sure, max_norm(leaf), seen.maps.float()), tags, "sum").sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(leaf.grad).all()
    assert torch.equal(unit(torch.zeros(1, 1, 4, 4)), torch.zeros(1, 1, 4, 4))


def test_exchange_is_directed_from_teacher_to_learner():
    seen, tags = case(samples=1)
    t = [F.softmax(seen.first[0, c, 0] / 10, 0) for c in (0, 1)]
    u = [F.softmax(seen.second[0, c, 0] / 10, 0) for c in (0, 1)]
    expected = 100 * sum((z[1] * (z[1] / z[0]).log()).sum() for z in (t, u)) / 2
    assert exchange(seen, tags)[0].item() == pytest.approx(expected.item(), rel=1e-10)


def test_unknown_tags_contribute_nothing():
    seen, tags = case(3, samples=5, labels=2)
    known = torch.rand(5, 2, generator=torch.Generator().manual_seed(1)) < 0.6
    for term in (classification, equivariance, cross_modality, exchange):
        values = []
        for poisoned in (tags.present, tags.present ^ ~known):
            loss = term(seen, Tags(poisoned, known)).sum()
            grads = torch.autograd.grad(loss, list(seen), allow_unused=True, retain_graph=True)
            values.append(loss.item())
            for grad in grads:
                assert grad is None or grad.movedim(1, 2)[~known].abs().max() == 0
        assert values[0] == values[1]
        nothing = term(seen, Tags(tags.present, torch.zeros_like(known)))
        assert nothing.abs().max() == 0


def test_several_labels_are_the_mean_of_each_alone():
    seen, tags = case(2, labels=3)
    for term in (classification, equivariance, cross_modality, exchange):
        alone = [
            term(Seen(*(field[:, :, k : k + 1] for field in seen)), Tags(*(t[:, k : k + 1] for t in tags)))
            for k in range(3)
        ]
        assert torch.allclose(term(seen, tags), torch.stack(alone).mean(0))


def test_one_optimiser_for_all_channels_is_one_for_each():
    torch.manual_seed(0)
    together = CAMNetworks(2, 1, True, (1,), width=8)
    apart = copy.deepcopy(together)
    joint = torch.optim.AdamW(together.parameters(), 1e-2, weight_decay=0.5)
    separate = [torch.optim.AdamW(n.parameters(), 1e-2, weight_decay=0.5) for n in apart.networks]
    tags = Tags(torch.tensor([[True], [False], [True]]), torch.ones(3, 1).bool())

    def losses(networks: nn.Module, views):
        first, second = networks(views)
        seen = Seen(first.logits, second.logits, first.maps.flip(-1), second.maps)
        terms = classification, equivariance, cross_modality, exchange
        return sum(term(seen, tags) for term in terms)

    for _ in range(3):
        image = torch.randn(3, 2, 16, 16)
        views = Views(image, image.flip(-1))
        joint.zero_grad()
        losses(together, views).sum().backward()
        joint.step()
        each = losses(apart, views)
        weights = [list(network.parameters()) for network in apart.networks]
        pairs = zip(each, weights, strict=True)
        gradients = [torch.autograd.grad(loss, own, retain_graph=True) for loss, own in pairs]
        for optimiser, own, gradient in zip(separate, weights, gradients, strict=True):
            for parameter, slope in zip(own, gradient, strict=True):
                parameter.grad = slope
            optimiser.step()
    for a, b in zip(together.state_dict().values(), apart.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
