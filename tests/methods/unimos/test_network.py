"""The pyramid, and logits fused over its scales."""

import math
from functools import partial

import pytest
import torch
from architectures import build, moved_network, network_spec, patch, plans
from torch import nn

from nnunetv2_conemos.methods import UniMOSTrainer
from nnunetv2_conemos.methods.unimos.pyramid import Pyramid, ResidualBlock
from nnunetv2_conemos.methods.unimos.scale_fusion import FusedScalesUNet, Perturb, ScaleFusion
from nnunetv2_conemos.networks.spec import PLANS_KEY, RECORDED
from nnunetv2_conemos.records import Query

EVERY = torch.arange(1, 4)


network = partial(moved_network, UniMOSTrainer)


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
    made = FusedScalesUNet(network_spec(3, channels=2), Pyramid(2, 4, [4, 6, 8], strides, convolution))
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
    assert len({d + o for d, o in zip(decoder, outputs, strict=True)}) == 1, "all outputs are equally deep"


@pytest.mark.parametrize("options", [{}, {"network": "planned"}, {"perturb": "features"}], ids=str)
@pytest.mark.parametrize("dim", [2, 3])
def test_perturbed_logits_differ_and_plain_ones_do_not(options, dim):
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


@pytest.mark.parametrize("backbone", ["pyramid", "planned"])
def test_prediction_and_pseudo_labels_are_corrected_for_the_weights_of_the_loss(backbone):
    """In every logit that the network gives; the published one corrects none."""
    corrected, published = (network(network=backbone, published=flag).eval() for flag in (False, True))
    image = torch.randn(2, 1, *patch(2))
    with torch.no_grad():
        for request in (image, Query(image, EVERY.expand(2, -1))):
            ours, theirs = (made(request)[:, -3:] for made in (corrected, published))
            assert torch.allclose(ours, theirs - math.log(6), atol=1e-5)
        ours, theirs = corrected(Perturb(image)), published(Perturb(image))
        assert torch.allclose(ours[0], theirs[0] - math.log(6), atol=1e-5)
    assert (corrected(image).argmax(1) > 0).sum() < (published(image).argmax(1) > 0).sum()


def test_models_of_before_predict_as_they_did():
    manager = plans(2)
    del manager.plans[PLANS_KEY][RECORDED]
    assert build(UniMOSTrainer, manager).prior == 0
