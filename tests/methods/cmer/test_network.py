"""Activation maps of the truncated U-Nets, and the logits that come of them."""

import copy

import pytest
import torch
from architectures import network_spec
from torch import nn

from nnunetv2_conemos.methods.cmer.loss import (
    Seen,
    Tags,
    classification,
    cross_modality,
    equivariance,
    exchange,
)
from nnunetv2_conemos.methods.cmer.network import Activation, CAMNetworks, CAMUNet, TwoViews, max_norm, standardised


@pytest.mark.parametrize(("divisor", "parameters"), [(1, 3_398_144), (4, 213_632)])
def test_the_published_networks_have_as_many_parameters(divisor, parameters):
    assert sum(p.numel() for p in CAMUNet(2, 64 // divisor).parameters()) == parameters


@pytest.mark.parametrize("size", [(24, 24), (16, 40), (21, 30)], ids=str)
def test_maps_are_of_full_resolution_and_their_means_are_the_logits(size):
    networks = CAMNetworks(network_spec(2, channels=3), width=8).eval()
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
    networks = CAMNetworks(network_spec(1, channels=2), width=8).eval()
    image = torch.randn(2, 2, 16, 16)
    changed = image.clone()
    changed[:, 1] = torch.randn(2, 16, 16)
    a, b, brighter = (networks.activation(x).logits for x in (image, changed, 3 * image + 5))
    assert torch.equal(a[:, 0], b[:, 0])
    assert not torch.equal(a[:, 1], b[:, 1])
    assert torch.allclose(a, brighter, atol=1e-5)
    assert torch.isfinite(networks.activation(torch.ones(2, 2, 16, 16)).logits).all()


def test_each_view_has_its_own_statistics_in_training():
    networks = CAMNetworks(network_spec(1), width=8).train()
    views = TwoViews(torch.randn(3, 1, 16, 16), torch.rand(3, 1, 24, 24) ** 3)
    apart = copy.deepcopy(networks)
    first, second = networks(views)
    assert torch.equal(first.maps, apart.activation(views.first).maps)
    assert torch.equal(second.logits, apart.activation(views.second).logits)
    assert second.maps.shape[-2:] == (24, 24)


@pytest.mark.parametrize("fusion", ["mean", "max", 1])
def test_the_answer_is_positive_where_the_fused_activation_exceeds_the_threshold(fusion):
    networks = CAMNetworks(network_spec(2, channels=2), width=8, fusion=fusion).eval()
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
    networks = CAMNetworks(network_spec(1, channels=2), width=8).eval()
    image = torch.randn(2, 2, 16, 16)
    raw = torch.randn(2, 8, 8).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normalised, activation = max_norm(raw), networks.activation(image)
    assert torch.equal(normalised, max_norm(raw.float()))
    assert activation.maps.dtype == activation.logits.dtype == torch.float32
    assert torch.isfinite(activation.maps).all()


def test_one_optimiser_for_all_channels_is_one_for_each():
    torch.manual_seed(0)
    together = CAMNetworks(network_spec(1, channels=2), width=8)
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
        views = TwoViews(image, image.flip(-1))
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
