"""The networks of the baselines and of label sets: what tells each from the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from architectures import LABELS, build, patch, plans
from worlds import make_trainer, shapes, write_world

from nnunetv2_conemos import methods
from nnunetv2_conemos.methods.dodnet import SIZES, dynamic_head
from nnunetv2_conemos.networks.heads import ABSENT, chosen_channels, nnunet_heads
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.validation import likeliest_alone

IMAGE = torch.randn(2, 1, *patch(2), generator=torch.Generator().manual_seed(0))


def trained(trainer: type, **options: object) -> torch.nn.Module:
    """A network as if trained: no zero-initialised layer hides a mistake."""
    torch.manual_seed(0)
    network = build(trainer, plans(2, "plain", LABELS, **options), LABELS, deep=False).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def queried(network: torch.nn.Module, *labels: int) -> torch.Tensor:
    with torch.no_grad():
        return network(Query(IMAGE, torch.tensor([labels] * 2)))


def test_heads_are_nnunets_and_absent_without_output():
    output_labels = torch.randn(1, 2, 4, 4)
    heads = nnunet_heads(output_labels, (3, 1), 4, True)
    assert heads.shape == (1, 5, 4, 4)
    assert (heads[:, 0] == 0).all()
    assert torch.equal(heads[:, [3, 1]], output_labels)
    assert (heads[:, [2, 4]] == ABSENT).all()
    assert nnunet_heads(output_labels, (1, 2), 2, False).shape == (1, 2, 4, 4)


def test_channels_are_chosen_for_each_sample():
    logits = torch.arange(2 * 3 * 4.0).view(2, 3, 4)
    chosen = chosen_channels(logits, torch.tensor([[3, 1], [2, 0]]))
    assert torch.equal(chosen[0], logits[0, [2, 0]])
    assert torch.equal(chosen[1, 0], logits[1, 1])


def test_a_label_that_nobody_annotated_gives_its_head_no_gradient(nnunet_folders):
    rng = np.random.default_rng(0)
    cases = {f"{'ab'[i % 2]}{i}": shapes(rng, 16, 4) for i in range(10)}
    labels = {"background": 0, "square": 1, "disc": 2}
    sources = {"A": {"cases": ["a*"], "annotated": ["square"]}, "B": {"cases": ["b*"], "annotated": ["square"]}}
    write_world(nnunet_folders, cases, labels, sources, batch_size=2)
    trainer = make_trainer(nnunet_folders, methods.MultiTalentTrainer)
    trainer.initialize()
    trainer.network.train()
    query, truth = trainer.to_query_and_truth(next(trainer.get_dataloaders()[0]))
    trainer.loss(trainer.network(query), truth).backward()
    gradient = trainer.network.decoder.seg_layers[-1].weight.grad
    assert (gradient[0] != 0).any()
    assert (gradient[1] == 0).all()


def test_a_label_set_takes_one_pass_and_its_logits_depend_on_the_set():
    network = trained(methods.LabelSetFiLMTrainer)
    assert not torch.allclose(queried(network, 1), queried(network, 1, 2, 3)[:, :1], atol=1e-3)
    padded = network(Query(IMAGE, torch.tensor([[2, 0, 0]] * 2)))[:, :1]
    assert torch.allclose(padded, queried(network, 2), atol=1e-6), "0 is padding"


def test_a_label_set_can_be_queried_one_by_one():
    together, alone = (trained(methods.LabelSetFiLMTrainer, one_by_one=flag) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(together.parameters(), alone.parameters(), strict=True))
    with torch.no_grad():
        heads = alone(IMAGE)
    expected = torch.cat([queried(together, label) for label in (1, 2, 3)], dim=1)
    assert torch.allclose(heads[:, 1:], expected, atol=1e-6)
    with pytest.raises(NotImplementedError, match="one_by_one"):
        alone.stock_weights([1, 2])


def test_logits_of_the_other_methods_do_not_depend_on_the_other_queried_labels():
    for trainer in (methods.DoDNetTrainer, methods.MultiTalentTrainer, methods.MultiDecoderTrainer):
        network = trained(trainer)
        assert torch.allclose(queried(network, 2), queried(network, 3, 2)[:, 1:], atol=1e-5), trainer.__name__


def test_the_dynamic_head_is_three_generated_convolutions():
    assert sum(SIZES) == 153
    features, weights = torch.randn(2, 8, 5, 5), torch.randn(2, 3, 153)
    logits = dynamic_head(features, weights)
    for b in range(2):
        for q in range(3):
            w1, b1, w2, b2, w3, b3 = weights[b, q].split(SIZES)
            x = F.relu(F.conv2d(features[b : b + 1], w1.view(8, 8, 1, 1), b1))
            x = F.relu(F.conv2d(x, w2.view(8, 8, 1, 1), b2))
            x = F.conv2d(x, w3.view(1, 8, 1, 1), b3)
            assert torch.allclose(logits[b, q], x[0, 0], atol=1e-4)


def test_dodnet_sees_the_image_through_its_bottleneck():
    network = trained(methods.DoDNetTrainer)
    labels = torch.tensor([[1], [1]])
    first, second = network._weights(torch.randn(2, network.encoder.output_channels[-1]), labels)
    assert not torch.allclose(first, second)


def different_images() -> torch.Tensor:
    """Discs of different size, place and brightness, in noise."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:16, :16]
    images = rng.normal(0, 0.3, (8, 1, 16, 16))
    for image in images:
        radius, (cy, cx), bright = rng.uniform(1, 6), rng.uniform(4, 12, 2), rng.uniform(1, 4)
        image += bright * (np.hypot(y - cy, x - cx) < radius)
    return torch.from_numpy(images).float()


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_controller_of_dodnet_tells_images_apart(kind):
    """After an instance norm, nearly all of what it sees is the same in every image."""

    def spread(controller: str) -> float:
        torch.manual_seed(0)
        manager = plans(2, kind, features=(8, 16, 32), controller=controller)
        network = build(methods.DoDNetTrainer, manager, deep=False).eval()
        with torch.no_grad():
            _, pooled = network._features(different_images())
        return (pooled.std(0) / pooled.abs().mean(0)).mean().item()

    assert spread("before_norm") > 0.2
    assert spread("after_norm") < 0.15


def test_the_bottleneck_of_dodnet_is_that_of_the_main_path_and_not_kept():
    for kind in ("plain", "residual"):
        network = build(methods.DoDNetTrainer, plans(2, kind), deep=False).eval()
        stage = network.encoder.stages[-1]
        seen = []
        block = stage.blocks[-1].conv2 if kind == "residual" else stage[0].convs[-1]
        block.norm.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with torch.no_grad():
            _, pooled = network._features(IMAGE)
            expected = F.relu(network.seen[0](seen[0])).flatten(2).mean(2)
            assert torch.allclose(pooled, expected)
            network(IMAGE)
        assert network.bottleneck is None


def test_generated_convolutions_start_with_the_gain_of_he_for_labels_and_images():
    torch.manual_seed(0)
    manager = plans(2, features=(16, 64, 128))
    network = build(methods.DoDNetTrainer, manager, deep=False).eval()
    images, labels = torch.randn(8, 1, *patch(2)), torch.arange(1, 4).expand(8, -1)
    with torch.no_grad():
        weights = network._weights(network._features(images)[1], labels)
    convolutions, biases = weights.split(SIZES, -1)[0::2], weights.split(SIZES, -1)[1::2]
    assert torch.cat(convolutions, -1).var().item() == pytest.approx(2 / 8, rel=0.5)
    assert torch.cat(biases, -1).abs().max() == 0
    assert weights.std(1)[..., : SIZES[0]].mean() > 0.2, "labels differ"


def test_dodnet_is_asked_all_annotated_labels_of_a_case(nnunet_folders):
    rng = np.random.default_rng(0)
    cases = {f"{'ab'[i % 2]}{i}": shapes(rng, 16, 4) for i in range(10)}
    sources = {"A": {"cases": ["a*"], "annotated": ["square", "disc"]}, "B": {"cases": ["b*"], "annotated": ["disc"]}}
    write_world(nnunet_folders, cases, {"background": 0, "square": 1, "disc": 2}, sources, batch_size=8)
    trainer = make_trainer(nnunet_folders, methods.DoDNetTrainer)
    trainer.initialize()
    batch = next(trainer.get_dataloaders()[0])
    query, truth = trainer.to_query_and_truth(batch)
    asked = {"a": [1, 2], "b": [2, 0]}
    assert query.labels.tolist() == [asked[str(key)[0]][: query.labels.shape[1]] for key in batch["keys"]]
    assert torch.equal(truth[0].known, query.labels > 0)


def test_too_many_decoders_are_refused():
    many = {"background": 0} | {f"label{i}": i for i in range(1, 18)}
    with pytest.raises(NotImplementedError, match=r"17 labels would need 17 decoders .* at most 16"):
        build(methods.MultiDecoderTrainer, plans(2, "plain", many), many)
    assert len(trained(methods.MultiDecoderTrainer).decoder) == 3


def test_decoders_switch_deep_supervision_together():
    network = trained(methods.MultiDecoderTrainer)
    network.decoder.deep_supervision = True
    assert all(decoder.deep_supervision for decoder in network.decoder)
    assert len(network(Query(IMAGE, torch.tensor([[1, 2]] * 2)))) == 2


def test_softmax_heads_give_nnunets_own_probabilities():
    network = trained(methods.MarginalLossTrainer)
    with torch.no_grad():
        stock = network.decoder(network.encoder(IMAGE))
        heads = network(IMAGE)
    assert torch.allclose(torch.softmax(heads, 1), torch.softmax(stock, 1), atol=1e-6)


@pytest.mark.parametrize("trainer", [methods.MarginalLossTrainer, methods.UniMOSTrainer], ids=lambda t: t.__name__)
def test_labels_of_a_softmax_without_output_compete_as_background(trainer, monkeypatch):
    """Labels that nobody annotated were trained as background, and labels that are not chosen are still somewhere."""
    every = queried(trained(trainer), 1, 2, 3)
    monkeypatch.setenv("CONEMOS_LABELS", '["a", "c"]')
    with torch.no_grad():
        some = trained(trainer)(IMAGE)
    p = torch.softmax(torch.cat((torch.zeros_like(every[:, :1]), every), 1), 1)
    found = torch.softmax(some[:, [0, 1, 3]], 1)
    assert torch.allclose(found, torch.stack((p[:, 0] + p[:, 2], p[:, 1], p[:, 3]), 1), atol=1e-4)
    assert (some[:, 2] == ABSENT).all()


def test_labels_of_a_softmax_are_counted_where_they_are_the_likeliest():
    logits = torch.tensor([[2.0, 3.0, -1.0, 0.5], [1.0, 4.0, -2.0, 0.7], [9.0, 9.0, 9.0, 9.0]]).T.view(1, 4, 3)
    alone = likeliest_alone(logits.transpose(1, 2).reshape(1, 3, 4), never_annotated=[3])
    assert (alone > 0).tolist() == [[[True, False, False, False], [False, True, False, True], [False] * 4]]
