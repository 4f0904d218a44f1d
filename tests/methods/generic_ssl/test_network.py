"""The published network in the size of the plans, and its three decoders."""

import pytest
import torch
from architectures import build, network_spec, plans
from torch import nn

from nnunetv2_conemos.inference.adapt import Named, adapt_weights
from nnunetv2_conemos.methods import GenericSSLTrainer
from nnunetv2_conemos.methods.generic_ssl.network import AggregateDecouple, BothStreams, Noisy, against_background
from nnunetv2_conemos.methods.generic_ssl.vnet import Shape, Unit
from nnunetv2_conemos.networks.spec import PLANS_KEY, RECORDED
from nnunetv2_conemos.records import Query

WIDTHS = (32, 64, 128, 256, 512)


def published(classes=2, norm="batch"):
    shape = Shape(nn.Conv3d, WIDTHS, [[3] * 3] * 5, [[1] * 3] + [[2] * 3] * 4, norm)
    return AggregateDecouple(network_spec(classes - 1), shape)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


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
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_one_pass_gives_all_three_and_each_by_itself(dim, norm):
    made = network(dim, norm=norm).eval()
    image, other = torch.randn(2, 1, *[16] * dim), torch.randn(2, 1, *[16] * dim)
    noisy = Noisy(image, torch.randn(2, 4, *[16] * dim), torch.tensor([3, 900]))
    with torch.no_grad():
        denoised, reweighted, unlabelled = made(BothStreams(noisy, other))
        assert denoised.shape == reweighted.shape == unlabelled.shape == (2, 4, *[16] * dim)
        assert torch.equal(denoised, made.denoise(noisy))
        assert torch.equal(reweighted, made.reweight(image))
        queried = made(Query(other, torch.arange(1, 4).expand(2, -1)))
        assert torch.allclose(against_background(unlabelled), queried)
        later = made.denoise(noisy._replace(step=torch.tensor([500, 900])))
    assert not torch.allclose(later[0], denoised[0]), "the step is seen"
    assert torch.allclose(later[1], denoised[1], atol=1e-5), "each sample its own"


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


def test_units_norm_after_the_nonlinearity_and_drop_channels():
    made = network(3)
    for unit in (made.image_stem, made.encoder.blocks[0][0], made.decoder.blocks[0][0]):
        kinds = [type(module).__name__ for module in unit.after]
        assert kinds == ["ReLU", "GroupNorm", "Dropout3d"]
        assert unit.after[2].p == 0.1
    assert made.encoder.down[0].after[2].p == made.decoder.up[0].after[2].p == 0
    assert made.encoder.dropout.p == made.decoder.dropout.p == made.denoiser.dropout.p == 0.5


def different_images(dim=2):
    """An empty slice, noise, black, and a slice with an organ."""
    images = torch.zeros(4, 1, *[16] * dim)
    images[0] = 1.0
    images[1] = torch.randn(images[1].shape, generator=torch.Generator().manual_seed(1))
    images[2] = -1.0
    images[3] = images[0]
    images[(3, 0, *[slice(4, 10)] * dim)] = 4.0
    return images


def means_of_units(norm, train):
    """Mean of each channel of each image after every unit of encoder and decoder, and of the logits."""
    torch.manual_seed(0)
    shape = Shape(nn.Conv2d, (8, 16, 32), [[3, 3]] * 3, [[1, 1], [2, 2], [2, 2]], norm)
    made, means = AggregateDecouple(network_spec(2), shape), {}
    for module in made.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # which would tell images apart itself
    for name, module in made.named_modules():
        if isinstance(module, Unit) or name == "decoder.head":
            module.register_forward_hook(lambda _, given, output, name=name: means.update({name: output.mean((2, 3))}))
    with torch.no_grad():
        for _ in range(30):
            made(different_images())  # moves the running statistics
        made.train(train)(Query(different_images(), torch.tensor([[1, 2]] * 4)))
    assert len(means) == 14, "the stem, 7 units of the encoder, 5 of the decoder, and the logits"
    return means


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_how_much_is_predicted_is_up_to_the_image(norm, train):
    """At every level: no two of an empty slice, noise, black and an organ have the same mean features or logits."""
    for name, means in means_of_units(norm, train).items():
        apart = (means[:, None] - means[None]).abs().amax(2)
        assert apart[~torch.eye(4, dtype=torch.bool)].min() > 1e-3, (name, apart)


def test_after_instance_norms_it_is_not():
    """Why they are not offered any more."""
    for name, means in means_of_units("instance", train=True).items():
        assert (means - means[:1]).abs().max() < 1e-4, name


def test_small_batches_get_group_norms_and_others_batch_norms():
    for samples, kind in ((2, "GroupNorm"), (3, "BatchNorm2d")):
        manager = plans(2)
        manager.plans["configurations"]["tiny"]["batch_size"] = samples
        assert type(build(GenericSSLTrainer, manager).image_stem.after[1]).__name__ == kind


def test_models_of_before_have_the_network_of_their_time():
    manager = plans(2)
    del manager.plans[PLANS_KEY][RECORDED]
    made = build(GenericSSLTrainer, manager)
    assert type(made.image_stem.after[1]).__name__ == "InstanceNorm2d"
    assert made.voting is None
    assert network().voting is not None
    assert network(diffusion="always").voting is None


def test_without_pseudo_labels_a_decoder_that_learns_from_annotations_predicts():
    made, image = network(unlabelled_weight=0).eval(), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected = against_background(made.reweight(image))
        assert torch.allclose(made(image)[:, 1:], expected)
        assert torch.allclose(made(Query(image, torch.arange(1, 4)[None])), expected)
    assert network().learns_unlabelled


def test_classes_in_another_order_start_fresh():
    trained, ours = network(), Named(("c", "x", "a"), ())
    torch.manual_seed(1)
    for parameter in trained.parameters():
        parameter.data += torch.randn_like(parameter)
    theirs = {name: value.clone() for name, value in trained.state_dict().items()}
    same, _ = adapt_weights(theirs, ours, network(), ours)
    assert all(torch.equal(same[name], value) for name, value in theirs.items())
    other, taken = adapt_weights(theirs, Named(("a", "b", "c"), ()), network(), ours)
    changed = {name for name, value in theirs.items() if not torch.equal(other[name], value)}
    assert changed == {
        *(f"{decoder}.head.{part}" for decoder in ("denoiser", "reweighted", "decoder") for part in ("weight", "bias")),
        *(f"diffusion_stem.operation.{part}" for part in ("weight", "bias")),
    }
    assert {name for name in theirs if name not in taken and not name.startswith(("difficulty", "voting"))} == changed
