"""The FiLM-conditioned U-Net: the method's tests of label identity, modulation, mixed batches and cost."""

import copy
import statistics
import time

import pytest
import torch
from architectures import LABELS, REGIONS, build, patch, plans
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import nn

from nnunetv2_conemos.methods import ConditionalFiLMTrainer, conemos
from nnunetv2_conemos.networks import film, heads, planned
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.records import Query

NETWORKS = [(2, "plain", False), (3, "plain", False), (2, "residual", False), (3, "residual", True)]
OPTIONS = [
    {},
    {"after_nonlinearity": True},
    {"image_features": True},
    {"last_layers": 1},
    {"last_layers": 3},
    {"last_layers": 3, "image_features": True, "after_nonlinearity": True},
]

COVERING = [
    *((2, "plain", False, options) for options in OPTIONS),
    *((*network, {}) for network in NETWORKS[1:]),
    (3, "residual", True, OPTIONS[-1]),
]
OTHERS = [way for way in ((*network, options) for network in NETWORKS for options in OPTIONS) if way not in COVERING]
IN_EACH_WAY = pytest.mark.parametrize(
    ("dim", "kind", "anisotropic", "options"),
    [*COVERING, *(pytest.param(*way, marks=pytest.mark.slow) for way in OTHERS)],
    ids=str,
)


def conditional_unet(dim=2, kind="plain", anisotropic=False, labels=LABELS, trained=True, **options):
    torch.manual_seed(0)
    network = build(ConditionalFiLMTrainer, plans(dim, kind, labels, anisotropic, **options), labels).eval()
    if trained:
        for layer in film_layers(network):
            nn.init.normal_(layer.project.weight, std=0.1)
            nn.init.normal_(layer.project.bias, std=0.1)
        for norm in network.modules():  # residual blocks start with a norm weight of 0, which hides what is inside
            if isinstance(norm, film.FiLMInstanceNorm):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
    return network


def film_layers(network):
    return [m for m in network.modules() if isinstance(m, film.FiLM)]


def image(dim, batch=2):
    return torch.randn(batch, 1, *patch(dim), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def queried(network, x, *rows):
    logits = network(Query(x, torch.tensor(rows)))
    return logits[0] if isinstance(logits, list) else logits


@IN_EACH_WAY
def test_permuting_the_labels_permutes_the_channels_and_labels_differ(dim, kind, anisotropic, options):
    network, x = conditional_unet(dim, kind, anisotropic, **options), image(dim)
    logits = queried(network, x, [1, 2, 3], [1, 2, 3])
    assert torch.allclose(queried(network, x, [3, 1, 2], [3, 1, 2]), logits[:, [2, 0, 1]], atol=1e-5)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3


@IN_EACH_WAY
def test_mixed_label_batch_equals_single_calls(dim, kind, anisotropic, options):
    network, x = conditional_unet(dim, kind, anisotropic, **options).double(), image(dim).double()  # no rounding
    mixed = queried(network, x, [1], [3])
    alone = torch.cat((queried(network, x[:1], [1]), queried(network, x[1:], [3])))
    assert torch.allclose(mixed, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dim", "kind", "anisotropic"), NETWORKS)
def test_untrained_it_is_the_unconditioned_network_for_every_label(dim, kind, anisotropic):
    network, x = conditional_unet(dim, kind, anisotropic, trained=False), image(dim)
    torch.manual_seed(0)
    configuration = plans(dim, kind, anisotropic=anisotropic).get_configuration("tiny")
    stock = planned.planned_unet(configuration, 1, 1, False).eval()
    with torch.no_grad():
        expected = stock(x)
    for label in (1, 2, 3):
        assert torch.equal(queried(network, x, [label], [label]), expected)


@pytest.mark.parametrize(("dim", "kind", "anisotropic"), NETWORKS)
def test_every_norm_is_modulated_and_every_modulation_matters(dim, kind, anisotropic):
    network, x = conditional_unet(dim, kind, anisotropic), image(dim)
    stock = planned.planned_unet(plans(dim, kind, anisotropic=anisotropic).get_configuration("tiny"), 1, 1, True)
    norms = [m for m in stock.modules() if isinstance(m, nn.InstanceNorm2d | nn.InstanceNorm3d)]
    layers = film_layers(network)
    assert len(layers) == len(norms) + len(stock.decoder.seg_layers)
    assert not any(isinstance(m, nn.InstanceNorm2d | nn.InstanceNorm3d) for m in network.modules())
    before = network(Query(x, torch.ones(2, 1, dtype=torch.long)))
    for layer in layers:
        saved = layer.project.bias.detach().clone()
        layer.project.bias.data += 0.5
        after = network(Query(x, torch.ones(2, 1, dtype=torch.long)))
        layer.project.bias.data = saved
        assert any((a - b).abs().max() > 1e-4 for a, b in zip(before, after, strict=True))


def test_last_layers_counts_the_logits_first():
    heads = 2
    assert len(film_layers(conditional_unet(last_layers=1))) == heads
    network = conditional_unet(last_layers=3)
    assert len(film_layers(network)) == heads + 2
    assert isinstance(network.decoder.stages[-1].convs[-1].norm, film.FiLMInstanceNorm)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_plain_tensor_gives_all_heads_of_nnunet(labels, options):
    network, x = conditional_unet(labels=labels, **options), image(2)
    network.decoder.deep_supervision = False
    with torch.no_grad():
        everything = network(x)
    assert everything.shape == (2, 3 + (labels is LABELS), *patch(2))
    if labels is LABELS:
        assert torch.equal(everything[:, 0], torch.zeros_like(everything[:, 0]))
    assert torch.allclose(everything[:, -3:], queried(network, x, [1, 2, 3], [1, 2, 3]), atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_stages_before_the_first_modulated_layer_run_once_per_image(options, monkeypatch):
    monkeypatch.setattr(conemos.ConditionalUNet, "labels_at_once", 1)
    network = conditional_unet(**options)
    network.decoder.deep_supervision = False
    stages = [*network.encoder.stages, *network.decoder.stages]
    layers = [*stages[:-1], nn.ModuleList([stages[-1], network.decoder.seg_layers[-1]])]
    first = next(i for i, layer in enumerate(layers) if any(isinstance(m, film.FiLM) for m in layer.modules()))
    calls = dict.fromkeys(stages, 0)
    for stage in stages:
        stage.register_forward_hook(lambda m, *_: calls.__setitem__(m, calls[m] + 1))
    network(image(2))
    assert [calls[stage] for stage in stages] == [1] * first + [3] * (len(stages) - first)


def test_memory_of_the_network_does_not_grow_with_the_number_of_labels():
    """The widest batch that any layer sees is bounded, whatever K is."""
    labels = {"background": 0, **{f"l{k}": k for k in range(1, 31)}}
    network = conditional_unet(labels=labels)
    network.decoder.deep_supervision = False
    widest = []
    for layer in film_layers(network):
        layer.project.register_forward_hook(lambda _m, inputs, _o: widest.append(inputs[0].shape[0]))
    assert network(image(2, batch=1)).shape[1] == 31
    assert max(widest) == conemos.ConditionalUNet.labels_at_once


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_labels_that_nobody_annotates_are_never_predicted(labels):
    manager = plans(labels=labels)
    everything = build(ConditionalFiLMTrainer, manager, labels, deep=False)
    manager.plans[PLANS_KEY]["untaught"] = manager.plans[PLANS_KEY]["labels"][1:2]
    network = build(ConditionalFiLMTrainer, manager, labels, deep=False)
    network.load_state_dict(everything.state_dict())
    with torch.no_grad():
        expected, found = everything(image(2)), network(image(2))
    expected[:, -2] = heads.ABSENT
    assert torch.allclose(found, expected, atol=1e-6)


def test_heads_own_their_memory():
    """nnU-Net adds mirrored passes in place."""
    network, x = conditional_unet(), image(2)
    network.decoder.deep_supervision = False
    with torch.no_grad():
        first = network(x)
        kept = first.clone()
        first += network(x)
        assert torch.allclose(network(x), kept)


def test_padding_leaves_the_other_channels_alone():
    network, x = conditional_unet(), image(2)
    assert torch.allclose(queried(network, x, [2, 0], [1, 3])[0, 0], queried(network, x, [2], [1])[0, 0], atol=1e-5)


def test_copies_are_independent():
    network, x = conditional_unet(), image(2)
    twin = copy.deepcopy(network)
    twin.embed[0].bias.data += 1
    assert not torch.allclose(queried(network, x, [1], [1]), queried(twin, x, [1], [1]))


def test_labels_start_with_codes_of_their_own():
    codes = conditional_unet(trained=False).embed(torch.eye(3))
    assert torch.cdist(codes, codes)[~torch.eye(3, dtype=torch.bool)].min() > 1


def test_batch_norm_is_modulated_by_an_operation_of_its_own():
    manager = plans()
    kwargs = manager.plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]
    kwargs["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    network = build(ConditionalFiLMTrainer, manager)
    assert isinstance(network.encoder.stages[0][0].convs[0].norm, film.FiLMAfter)
    assert network(Query(image(2), torch.tensor([[1], [2]])))[0].shape == (2, 1, *patch(2))


def test_plans_without_norms_or_with_other_networks_are_refused():
    manager = plans()
    manager.plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]["norm_op"] = None
    with pytest.raises(NotImplementedError, match="norm_op"):
        build(ConditionalFiLMTrainer, manager)
    manager = plans()
    manager.plans["configurations"]["tiny"]["architecture"]["network_class_name"] = f"{__name__}.NotAUNet"
    with pytest.raises(NotImplementedError, match="NotAUNet"):
        build(ConditionalFiLMTrainer, manager)


class NotAUNet(nn.Module):
    def __init__(self, **_):
        super().__init__()


def test_unknown_options_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"last_layer: Extra inputs.*last_layers, after_nonlinearity, image_features"):
        build(ConditionalFiLMTrainer, plans(last_layer=3))


def default_plans():
    """nnU-Net's own default sizes in 3D."""
    manager = plans(3)
    kwargs = manager.plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]
    kwargs |= {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 5],
        "n_conv_per_stage": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
    }
    return manager


def test_at_most_five_percent_more_parameters_than_stock_at_default_plans():
    manager = default_plans()
    ours = build(ConditionalFiLMTrainer, manager)
    chosen = manager.get_configuration("tiny")
    stock = get_network_from_plans(
        chosen.network_arch_class_name,
        chosen.network_arch_init_kwargs,
        chosen.network_arch_init_kwargs_req_import,
        1,
        4,
    )
    count = [sum(p.numel() for p in network.parameters()) for network in (ours, stock)]
    assert 1 < count[0] / count[1] < 1.05


def saved_bytes(network, query):
    """Bytes that a training step keeps for the backward pass, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scales = network(query)
    assert len(scales) == 2
    return sum(kept.values())


def side_by_side(dim, kind, size, features=(4, 6, 8)):
    """The conditional and the stock network with one output, and what a training step gives them."""
    stock = planned.planned_unet(plans(dim, kind, features=features).get_configuration("tiny"), 1, 1, True)
    x = torch.randn(2, 1, *[size] * dim)
    return (conditional_unet(dim, kind, features=features), Query(x, torch.tensor([[1], [2]]))), (stock, x)


@pytest.mark.parametrize(("dim", "kind"), [(2, "plain"), (3, "plain"), (3, "residual")])
def test_a_training_step_keeps_at_most_a_tenth_more_memory_than_stock(dim, kind):
    ours, stock = (saved_bytes(*pair) for pair in side_by_side(dim, kind, 32 if dim == 3 else 96))
    assert ours <= 1.10 * stock


@pytest.mark.slow
def test_a_training_step_takes_at_most_a_tenth_longer_than_stock():
    """In turn, in one process, in processor time; the median of the ratios, because machines are noisy.

    Of networks nearly as small as those of docs/results/: on tinier ones, the small dense layers weigh more.
    """
    pairs = side_by_side(3, "plain", size=48, features=(8, 16, 32))

    def seconds(network, query):
        start = time.process_time()
        sum(z.mean() for z in network(query)).backward()
        return time.process_time() - start

    ratios = [seconds(*pairs[0]) / seconds(*pairs[1]) for _ in range(25)]
    assert statistics.median(ratios[5:]) < 1.10


@pytest.mark.parametrize(("dim", "kind", "anisotropic"), NETWORKS)
def test_a_folded_label_is_a_stock_network(dim, kind, anisotropic):
    network, x = conditional_unet(dim, kind, anisotropic), image(dim)
    stock = planned.planned_unet(
        plans(dim, kind, anisotropic=anisotropic).get_configuration("tiny"), 1, 1, False
    ).eval()
    stock.load_state_dict(network.stock_weights([2]))
    with torch.no_grad():
        assert torch.allclose(stock(x), queried(network, x, [2], [2]), atol=1e-5)


def test_what_cannot_be_folded_is_refused():
    with pytest.raises(NotImplementedError, match="does not fold"):
        conditional_unet(after_nonlinearity=True).stock_weights([1])


def test_options_live_in_the_plans_configuration():
    assert plans(last_layers=2).get_configuration("tiny").configuration[PLANS_KEY] == {"last_layers": 2}
