"""Priors of labels and modality, and the logits that come of them."""

import pytest
import torch
from architectures import build, plans
from hermes_models import network, query
from torch import nn

from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.methods.hermes.backbone import PublishedUNet, published_unet
from nnunetv2_conemos.methods.hermes.prior_fusion import MODALITY_TOKENS, FusionBlock
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.records import Query

NULL = -1  # last row of a table


@pytest.mark.parametrize("dim", [2, 3])
def test_only_the_priors_of_queried_labels_get_a_gradient(dim):
    made = network(dim)
    output = made(query([[1, 3], [3, 0]], dim=dim))
    (output.logits[0].sum() + output.logits[1, 0].sum() + output.modality.sum()).backward()
    for place in made.places():
        norms = place.labels.grad.norm(dim=1)
        assert norms[[0, 2, NULL]].min() > 0
        assert norms[1] == 0
        norms = place.modalities.grad.flatten(1).norm(dim=1)
        assert norms[[0, 1]].min() > 0
        assert norms[2] == norms[NULL] == 0


def test_swapping_the_priors_of_two_labels_swaps_their_masks():
    made = network()
    with torch.no_grad():
        before = made(query([[1, 2, 3]] * 2)).logits
        for place in made.places():
            place.labels.data[[0, 1]] = place.labels.data[[1, 0]]
        after = made(query([[1, 2, 3]] * 2)).logits
    assert torch.allclose(before[:, [1, 0, 2]], after, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_logits_depend_on_the_modality_and_on_the_other_queried_labels(fused):
    made = network()
    if not fused:
        for place in made.places():
            place.blocks = nn.ModuleList()
    with torch.no_grad():
        plain = made(query([[1], [1]])).logits
        others = [made(query([[1], [1]], modality=(2, 3))).logits, made(query([[1, 2], [1, 2]])).logits[:, :1]]
    for other in others:
        assert torch.allclose(plain, other, atol=1e-5) != fused


@pytest.mark.parametrize("masked", [True, False])
def test_padding_changes_nothing_if_it_is_masked(masked):
    made = network(mask_padding=masked)
    with torch.no_grad():
        plain = made(query([[1, 3], [3, 2]])).logits
        padded = made(query([[1, 3, 0, 0, 0], [3, 2, 0, 0, 0]])).logits[:, :2]
    assert torch.allclose(plain, padded, atol=1e-5) == masked


def test_tokens_and_voxels_attend_to_each_other():
    torch.manual_seed(0)
    block, tokens, voxels = FusionBlock(64), torch.randn(2, 5, 64), torch.randn(2, 30, 64)
    attended = torch.ones(2, 5, dtype=torch.bool)
    new_tokens, new_voxels = block(tokens, voxels, attended)
    assert not torch.allclose(tokens, new_tokens, atol=1e-3)
    assert not torch.allclose(voxels, new_voxels, atol=1e-3)
    for last in (block.from_tokens.out, block.voxel_mlp[-1]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    tokens_now, voxels_now = block(tokens, voxels, attended)
    assert torch.equal(tokens_now, new_tokens)
    assert torch.equal(voxels_now, voxels)


@pytest.mark.parametrize(("dim", "kind"), [(2, "plain"), (3, "plain"), (2, "residual"), (3, "residual")])
def test_widths_of_priors_and_prototypes(dim, kind):
    """Of strides 1, 2, 4 only the bottleneck is fused, of 1 to 16 three stages on the way down and two on that up."""
    assert [place.labels.shape for place in network(dim, kind=kind).places()] == [(4, 8)]
    assert [len(place.blocks) for place in network(dim, kind=kind).places()] == [4]
    deep = plans(dim, kind)
    arguments = deep.plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]
    repeats = next(name for name in ("n_conv_per_stage", "n_blocks_per_stage") if name in arguments)
    arguments |= {"n_stages": 5, "features_per_stage": [4, 8, 16, 32, 64], repeats: [1] * 5}
    arguments |= {"kernel_sizes": [[3] * dim] * 5, "strides": [[1] * dim] + [[2] * dim] * 4}
    arguments["n_conv_per_stage_decoder"] = [1] * 4
    made = build(HermesTrainer, deep)
    assert [place.labels.shape[1] for place in made.places()] == [16, 32, 64, 32, 16]
    assert [len(place.blocks) for place in made.places()] == [2, 2, 4, 2, 2]
    assert made.modality_norm.normalized_shape == (16 + 32 + 64 + 32 + 16,)
    assert all(place.modalities.shape[1] == MODALITY_TOKENS for place in made.places())
    features, prototypes = [], []
    made.decoder.seg_layers[-1].register_forward_hook(lambda _m, _i, out: features.append(out))
    made.prototypes.register_forward_hook(lambda _m, _i, out: prototypes.append(out))
    output = made(Query(torch.randn(2, 1, *[32] * dim), torch.tensor([[2, 1], [3, 1]])))
    assert prototypes[0].shape == (2, 2, 4)
    assert torch.allclose(output.logits, torch.einsum("bqf,bf...->bq...", prototypes[0], features[0]), atol=1e-5)


def test_the_modality_of_some_training_samples_is_withheld():
    """So that the unknown modality of prediction is trained although every case declares its own."""
    made = network(modality_dropout=0.5).train()
    made(query([[1, 2, 3]] * 64, modality=[1] * 64)).logits.sum().backward()
    assert all(place.modalities.grad[NULL].norm() > 0 for place in made.places())
    never = network(modality_dropout=0.0).train()
    never(query([[1, 2, 3]] * 64, modality=[1] * 64)).logits.sum().backward()
    assert all(place.modalities.grad[NULL].norm() == 0 for place in never.places())


@pytest.mark.parametrize("shape", [(16, 32, 32), (32, 32, 32)])
def test_the_published_backbone_has_the_published_size(shape):
    """60.88 million parameters: 72 labels, five modalities and an unknown one; the head names six in the original."""
    manager = plans(3, backbone="hermes_r")
    configuration = manager.get_configuration("tiny")
    configuration.configuration["patch_size"] = list(shape)
    names = {f"l{k}": k for k in range(1, 73)}
    manager.plans[PLANS_KEY] |= {"labels": list(names), "modalities": ["CT", "PET", "T1", "T2", "cine"]}
    manager.plans[PLANS_KEY] |= {"groups": [list(names)]}
    made = HermesTrainer.build_network_architecture(manager, configuration, 1, 73, False).eval()
    size = {name: sum(p.numel() for p in parameters) for name, parameters in pieces(made).items()}
    assert size["backbone"] / 1e6 == pytest.approx(40.56, abs=0.005)
    assert size["attention"] / 1e6 == pytest.approx(17.76, abs=0.005)
    assert size["tokens"] == 73 * 1088 + 6 * 10 * 1088
    assert size["mask head"] / 1e6 == pytest.approx(1.22, abs=0.005)
    one_more_modality = 1088 + 1
    assert (size["modality head"] + one_more_modality) / 1e6 == pytest.approx(1.19, abs=0.005)
    assert (sum(size.values()) + one_more_modality) / 1e6 == pytest.approx(60.88, abs=0.005)
    with torch.no_grad():
        assert made(Query(torch.randn(1, 1, *shape), torch.tensor([[1, 72]]))).logits.shape == (1, 2, *shape)


def pieces(made):
    fused = list(made.places())
    attention = [p for place in fused for p in place.blocks.parameters()]
    tokens = [p for place in fused for p in (place.labels, place.modalities)]
    ours = {id(p) for p in [*attention, *tokens]}
    return {
        "backbone": [p for part in (made.encoder, made.decoder) for p in part.parameters() if id(p) not in ours],
        "attention": attention,
        "tokens": tokens,
        "mask head": list(made.prototypes.parameters()),
        "modality head": [*made.modality_norm.parameters(), *made.modality_head.parameters()],
    }


def test_the_published_backbone_refuses_patches_it_cannot_halve():
    assert isinstance(published_unet([16, 32, 48], 2), PublishedUNet)
    for wrong in ([16, 16], [16, 16, 40]):
        with pytest.raises(NotImplementedError, match="multiples of 16"):
            published_unet(wrong, 1)


def test_label_priors_are_those_of_all_places():
    made = network()
    assert torch.equal(made.label_priors(), torch.cat([place.labels[:-1] for place in made.places()], dim=1))
