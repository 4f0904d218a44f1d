"""Absent labels leave the network early; whatever stays is computed as before."""

import warnings

import pytest
import torch
from architectures import REGIONS, build, patch, plans
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

from nnunetv2_conemos.methods import ConditionalFiLMTrainer, LabelSetFiLMTrainer, MultiTalentTrainer
from nnunetv2_conemos.networks.early_leaving import BOUNDS, NO_BOUNDS
from nnunetv2_conemos.networks.heads import ABSENT
from nnunetv2_conemos.networks.spec import skip_of_variable

MANY = {"background": 0, **{f"l{k}": k for k in range(1, 11)}}
CONDITIONAL = [{}, {"last_layers": 4}, {"image_features": True}, {"last_layers": 4, "image_features": True}]
NETWORKS = [(ConditionalFiLMTrainer, options) for options in CONDITIONAL]
NETWORKS += [(LabelSetFiLMTrainer, {"one_by_one": True}), (LabelSetFiLMTrainer, {"one_by_one": True, "last_layers": 4})]
EACH_NETWORK = pytest.mark.parametrize(("trainer", "options"), NETWORKS, ids=str)


def network_of(trainer, labels=MANY, dim=2, **options):
    torch.manual_seed(0)
    network = build(trainer, plans(dim, "plain", labels, **options), labels, deep=False).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def coarse_maxima(network, image):
    network.maxima = []
    exact = network(image)
    maxima, network.maxima = network.maxima, None
    return exact, torch.stack(maxima)


def rows_of(network, stage, image):
    rows = []
    hook = stage.register_forward_hook(lambda _m, inputs, _o: rows.append(len(inputs[0])))
    output = network(image)
    hook.remove()
    return output, rows


@EACH_NETWORK
@torch.no_grad()
def test_labels_below_their_bound_leave_and_all_others_are_the_same_bit_by_bit(trainer, options):
    network, image = network_of(trainer, **options), torch.randn(1, 1, *patch(2))
    off = network(image)
    exact, maxima = coarse_maxima(network, image)
    assert torch.equal(exact, off)
    assert maxima.shape == (1, 1, 10)
    assert maxima.isfinite().all()
    network.absence_bounds[:] = maxima[0] - 1e-4
    absent = [2, 3, 7]
    network.absence_bounds[0, absent] += 1
    assert torch.equal(network(image), off), "bounds are not looked at unless it is asked for"
    network.leave_early()
    left, rows = rows_of(network, network.decoder.stages[-1], image)
    _, coarse = rows_of(network, network.decoder.stages[0], image)
    assert sum(coarse) == 10
    assert sum(rows) == 7, "the finest stage is not computed for labels that left"
    assert max(rows) <= network.labels_at_once
    there = [k for k in range(10) if k not in absent]
    assert torch.allclose(left[:, 1:][:, there], exact[:, 1:][:, there], atol=1e-5)
    assert torch.equal(left[:, 1:][:, absent], torch.full_like(left[:, 1:][:, absent], ABSENT))


@torch.no_grad()
def test_rows_of_several_batches_are_joined_where_the_encoder_is_shared():
    network, image = network_of(ConditionalFiLMTrainer, last_layers=4), torch.randn(1, 1, *patch(2))
    _, maxima = coarse_maxima(network, image)
    network.absence_bounds[:] = maxima[0] - 1e-4
    network.absence_bounds[0, [0, 1, 2, 4, 5, 6]] += 1  # two of the first eight are left, and two of the rest
    network.leave_early()
    _, encoder = rows_of(network, network.encoder.stages[0], image)
    _, coarse = rows_of(network, network.decoder.stages[0], image)
    _, fine = rows_of(network, network.decoder.stages[-1], image)
    assert (encoder, coarse, fine) == ([1], [8, 2], [4])


@torch.no_grad()
def test_everything_may_leave_and_each_image_of_a_batch_keeps_its_own_labels():
    network = network_of(ConditionalFiLMTrainer, REGIONS, last_layers=4)
    images = torch.randn(2, 1, *patch(2))
    exact, maxima = coarse_maxima(network, images)
    assert maxima.shape == (2, 1, 3)
    network.absence_bounds[:] = (maxima[0] + maxima[1]) / 2
    network.leave_early()
    stays = maxima[:, 0] >= network.absence_bounds
    assert stays.any()
    assert not stays.all()
    expected = torch.where(stays[..., None, None], exact, ABSENT)
    assert torch.allclose(network(images), expected, atol=1e-5)
    network.absence_bounds[:] = 1e6
    assert torch.equal(network(images), torch.full_like(exact, ABSENT))


@torch.no_grad()
def test_only_some_labels_in_any_order():
    network, image = network_of(ConditionalFiLMTrainer), torch.randn(1, 1, *patch(2))
    network.output_labels = (7, 2)
    exact, maxima = coarse_maxima(network, image)
    assert maxima[0, 0].isfinite().nonzero().flatten().tolist() == [1, 6]
    network.absence_bounds[0, 1] = maxima[0, 0, 1] + 1
    network.leave_early()
    expected = exact.clone()
    expected[:, 2] = ABSENT
    assert torch.allclose(network(image), expected, atol=1e-5)


@torch.no_grad()
def test_there_is_nothing_to_leave_where_only_the_last_stage_is_conditioned():
    network, image = network_of(ConditionalFiLMTrainer, last_layers=2), torch.randn(1, 1, *patch(2))
    exact = network(image)
    network.absence_bounds[:] = 1e6
    network.leave_early()
    assert torch.equal(network(image), exact)


@torch.no_grad()
def test_a_logit_that_is_no_number_stays():
    network, image = network_of(ConditionalFiLMTrainer), torch.full((1, 1, *patch(2)), torch.nan)
    network.absence_bounds[:] = 1e6
    network.leave_early()
    assert network(image)[:, 1:].isnan().all()


def test_weights_without_bounds_are_what_they_were_and_those_of_another_fold_replace_them():
    network = network_of(ConditionalFiLMTrainer)
    without = network.state_dict()
    assert BOUNDS not in without
    network.absence_bounds[0, 3] = -2.0
    bounded = network.state_dict()
    assert BOUNDS in bounded
    other = network_of(ConditionalFiLMTrainer)
    other.load_state_dict(bounded)
    assert torch.equal(other.absence_bounds, network.absence_bounds)
    other.load_state_dict(without)
    assert not other.absence_bounds.isfinite().any()
    with pytest.raises(RuntimeError, match="Unexpected"):
        other.load_state_dict({**without, "of_another_network": torch.zeros(1)})
    assert BOUNDS not in network.stock_weights([1])


def test_asked_for_without_bounds_is_said_once_and_changes_nothing():
    network, image = network_of(ConditionalFiLMTrainer), torch.randn(1, 1, *patch(2))
    weights = network.state_dict()
    with torch.no_grad():
        exact = network(image)
        network.leave_early()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            for _ in range(3):
                network.load_state_dict(weights)
        assert [str(one.message) for one in said] == [NO_BOUNDS]
        assert torch.equal(network(image), exact)


def test_weights_with_bounds_start_another_training_without_them(tmp_path):
    """By nnU-Net's -pretrained_weights, with and without bounds."""
    trained, fresh = network_of(ConditionalFiLMTrainer), network_of(ConditionalFiLMTrainer)
    for bound in (-torch.inf, -2.0):
        trained.absence_bounds.fill_(bound)
        torch.save({"network_weights": trained.state_dict()}, tmp_path / "start.pth")
        load_pretrained_weights(fresh, str(tmp_path / "start.pth"))
        assert not fresh.absence_bounds.isfinite().any()


@pytest.mark.parametrize(("trainer", "options"), [(MultiTalentTrainer, {}), (LabelSetFiLMTrainer, {})], ids=str)
def test_networks_that_predict_all_labels_in_one_pass_refuse(trainer, options, monkeypatch):
    with pytest.raises(NotImplementedError, match="in one pass, so there are none to skip"):
        network_of(trainer, **options).leave_early()
    monkeypatch.setenv("CONEMOS_SKIP_ABSENT", "1")
    with pytest.raises(NotImplementedError, match="CONEMOS_SKIP_ABSENT"):
        network_of(trainer, **options)
    assert network_of(ConditionalFiLMTrainer).leaves_early


def test_the_variable_is_one_or_zero(monkeypatch):
    assert skip_of_variable(" 1 ")
    assert not skip_of_variable("0")
    assert not skip_of_variable("")
    with pytest.raises(ValueError, match="CONEMOS_SKIP_ABSENT: expected 1 or 0, found 'yes'"):
        skip_of_variable("yes")
