"""Two gloo processes on CPU: records, network, loss and validation counts agree with one process on the whole batch."""

import os
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from architectures import build, plans
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_conemos.losses.dice import batch_dice
from nnunetv2_conemos.losses.masked import MaskedDiceBCE
from nnunetv2_conemos.methods import ConditionalFiLMTrainer, GenericSSLTrainer, HermesTrainer, UniMOSTrainer
from nnunetv2_conemos.methods.generic_ssl.loss import ClassWeightedDiceCE
from nnunetv2_conemos.methods.generic_ssl.network import BothStreams, Noisy, against_background
from nnunetv2_conemos.methods.generic_ssl.options import GenericSSLOptions
from nnunetv2_conemos.methods.generic_ssl.pseudo_labels import class_counts
from nnunetv2_conemos.methods.hermes.loss import AdaptiveTverskyBCE
from nnunetv2_conemos.methods.marginal import MarginalExclusionLoss
from nnunetv2_conemos.methods.unimos import trainer as unimos_trainer
from nnunetv2_conemos.methods.unimos.loss import TargetAdaptiveLoss
from nnunetv2_conemos.methods.unimos.scale_fusion import Perturb
from nnunetv2_conemos.methods.unimos.trainer import UniMOSOptions
from nnunetv2_conemos.networks.spec import PLANS_KEY
from nnunetv2_conemos.records import Query, Truth
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

WORLD = 2
NORMS = ("group", "batch")


def network():
    torch.manual_seed(0)
    made = build(ConditionalFiLMTrainer, plans(2))
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def batch():
    """Four samples; each process gets two. The pairs that query label 1 are spread over both, the last is not known."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(4, 1, 16, 16, generator=generator)
    target = torch.randint(0, 4, (4, 1, 16, 16), generator=generator)
    labels = torch.tensor([[1], [2], [1], [3]])
    return image, target, labels, torch.tensor([[True]] * 3 + [[False]])


def gradients(model, loss, rows):
    image, target, labels, known = (part[rows] for part in batch())
    value = loss(model(Query(image, labels))[0], Truth(target, labels, known, None))
    value.backward()
    module = getattr(model, "module", model)
    return value.detach(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def worker(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    model = DistributedDataParallel(network(), find_unused_parameters=True)
    value, found = gradients(model, MaskedDiceBCE(ddp=True), slice(2 * rank, 2 * rank + 2))
    counted = reduced_counts(rank)
    hermes = hermes_gradients(DistributedDataParallel(hermes_network()), rank)
    unimos = unimos_gradients(DistributedDataParallel(unimos_network()), rank, ddp=True)
    generic = generic_gradients(DistributedDataParallel(generic_network()), slice(2 * rank, 2 * rank + 2), ddp=True)
    merged = merged_gradients(model, slice(2 * rank, 2 * rank + 2), ddp=True)
    unequal = unequal_dice((slice(0, 2), slice(2, 5))[rank], ddp=True)
    torch.save((value, found, counted, merged, unequal, hermes, unimos, generic), f"{folder}/{rank}.pt")
    for norm in NORMS:
        state = generic_step(DistributedDataParallel(generic_network(norm=norm)), rank)
        torch.save(state, f"{folder}/{norm}_{rank}.pt")
    torch.save(unimos_step(DistributedDataParallel(unimos_network()), rank), f"{folder}/unimos_{rank}.pt")
    dist.destroy_process_group()


MERGED = (TargetAdaptiveLoss, partial(TargetAdaptiveLoss, dice_weight=1.0), MarginalExclusionLoss, ClassWeightedDiceCE)


def merged_gradients(model, rows, ddp):
    """Of each loss that counts what is not annotated as background; one sample of the second process has no label."""
    image, target, *_ = (part[rows] for part in batch())
    every = torch.arange(1, 4).expand(len(image), -1)
    known = torch.tensor([[True, True, False]] * 2 + [[False, True, False], [False] * 3])[rows]
    truth, found = Truth(target, every, known, None), []
    for loss in MERGED:
        model.zero_grad()
        weight = (torch.tensor([0.1, 1.0, 2.0, 3.0]),) if loss is ClassWeightedDiceCE else ()
        loss(ddp=ddp)(model(Query(image, every))[0], truth, *weight).backward()
        own = getattr(model, "module", model).named_parameters()
        found.append({name: p.grad.clone() for name, p in own if p.grad is not None})
    return found


def unequal_dice(rows, ddp):
    """Its value and gradient [N,5]: of the five queried pairs, the first process has two and the second has three."""
    generator = torch.Generator().manual_seed(1)
    p, target = torch.rand(5, 1, 4, 4, generator=generator), torch.rand(5, 1, 4, 4, generator=generator).round()
    labels, leaf = torch.tensor([[1], [2], [1], [3], [1]])[rows], p[rows].requires_grad_()
    truth = Truth(target[rows], labels, torch.ones_like(labels, dtype=torch.bool), None)
    value = batch_dice(leaf, target[rows], truth, 1e-5, ddp)
    value.backward()
    return value.item(), leaf.grad


def hermes_network():
    manager = plans(2, modality_dropout=0.0)
    manager.plans[PLANS_KEY] |= {"modalities": ["CT", "T1"]}
    torch.manual_seed(0)
    return build(HermesTrainer, manager)


def hermes_gradients(model, rank):
    """The second process sees two samples of unknown modality."""
    image, target, _, _ = (part[2 * rank : 2 * rank + 2] for part in batch())
    labels, modality = torch.tensor([[1, 2], [3, 0]]), torch.tensor([[1, 2], [0, 0]][rank])
    output = model(Query(image, labels, modality))
    AdaptiveTverskyBCE()(output, Truth(target, labels, labels > 0, None, modality)).backward()
    module = getattr(model, "module", model)
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def unimos_gradients(model, rank, ddp):
    """Two terms, one after the other; the first without a word between the processes."""
    image, target, _, _ = (part[2 * rank : 2 * rank + 2] for part in batch())
    every = torch.arange(1, 4).expand(2, -1)
    known = torch.tensor([[True, False, True], [True, True, rank == 0]])
    truth = Truth(target, every, known, None, torch.zeros(2))
    trainer = object.__new__(UniMOSTrainer)
    trainer.network, trainer.is_ddp, trainer.device, trainer.grad_scaler = model, ddp, torch.device("cpu"), None
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = TargetAdaptiveLoss()
    trainer.backward_in_turn(
        [lambda: 0.001 * loss(model(Query(image, every)), truth), lambda: 0.002 * loss(model(Perturb(image))[0], truth)]
    )
    module = getattr(model, "module", model)
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def unimos_network():
    torch.manual_seed(0)
    return build(UniMOSTrainer, plans(2))


def generic_network(**options):
    torch.manual_seed(0)
    return build(GenericSSLTrainer, plans(2, **options)).eval()  # without dropout


def generic_gradients(model, rows, ddp):
    """Of the three losses in one step, and the difficulty that the counts of the batch leave."""
    image, target, _, _ = (part[rows] for part in batch())
    every = torch.arange(1, 4).expand(len(image), -1)
    truth = Truth(target, every, torch.ones(len(image), 3, dtype=torch.bool), None)
    maps = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(5))[rows]
    outputs = model(BothStreams(Noisy(image, maps, torch.tensor([0, 400, 700, 999])[rows]), image.flip(2)))
    trainer = object.__new__(GenericSSLTrainer)
    trainer.is_ddp = ddp
    module = getattr(model, "module", model)
    weights = module.difficulty.update(trainer._summed(class_counts(against_background(outputs[0]), truth)))
    loss = ClassWeightedDiceCE(ddp)
    sum(loss(against_background(output), truth) for output in outputs).backward()
    return weights, {name: p.grad.clone() for name, p in module.named_parameters()}


def every_label(keys):
    """No tag rules anything out."""
    return torch.ones(len(keys), 3, dtype=torch.bool)


class WithoutPlans(GenericSSLTrainer):
    """Halfway through a training, with queries and truth in the batch itself."""

    options, progress, device, grad_scaler = GenericSSLOptions(), 0.5, torch.device("cpu"), None
    to_query_and_truth, possible = staticmethod(lambda pair: pair), staticmethod(every_label)


def generic_step(model, rank):
    """A whole step with two streams, other images in each process: the state of the network after it."""
    image, target, _, _ = (part[2 * rank : 2 * rank + 2] for part in batch())
    every = torch.arange(1, 4).expand(2, -1)
    truth = Truth(target, every, torch.ones(2, 3, dtype=torch.bool), None)
    trainer = object.__new__(WithoutPlans)
    trainer.network, trainer.is_ddp, trainer.loss = model, True, ClassWeightedDiceCE(ddp=True)
    trainer.optimizer, trainer.supervised = torch.optim.SGD(model.parameters(), lr=0.1), np.ones(3, dtype=bool)
    trainer.lr_scheduler = PolyLRScheduler(trainer.optimizer, 0.1, 1)
    torch.manual_seed(rank)
    trainer.two_stream_step((Query(image, every), truth), {"data": image.flip(3), "keys": ["u"] * 2})
    return model.module.state_dict()


class UnturnedViews(UniMOSTrainer):
    """Halfway through a training, with queries and truth in the batch itself."""

    options, progress, device, grad_scaler = UniMOSOptions(), 0.5, torch.device("cpu"), None
    to_query_and_truth, possible = staticmethod(lambda pair: pair), staticmethod(every_label)
    _may_turn = staticmethod(lambda: False)


def unimos_step(model, rank):
    """A whole step, other images in each process, many voxels confident: the state of the network after it."""
    image, target, _, _ = (part[2 * rank : 2 * rank + 2] for part in batch())
    every = torch.arange(1, 4).expand(2, -1)
    trainer = object.__new__(UnturnedViews)
    trainer.network, trainer.is_ddp, trainer.loss = model, True, TargetAdaptiveLoss(ddp=True)
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer.targets = {"u": np.ones(3, dtype=bool)}
    torch.manual_seed(rank)
    truth = Truth(target, every, torch.ones(2, 3, dtype=torch.bool), None, torch.zeros(2))
    images = image.flip(3).repeat(2, 1, 1, 1)
    unlabelled = {"data": images, "target": torch.zeros(4, 1, 16, 16), "keys": ["u"] * 4}
    with mock.patch.object(unimos_trainer, "threshold", return_value=0.3):
        report = trainer.two_stream_step((Query(image, every), truth), unlabelled)
    assert np.isfinite(report["loss"])
    assert report["unsupervised loss"] > 0
    return model.module.state_dict()


def reduced_counts(rank):
    """Only the second process saw anything: both must log its Dice, and neither the repeated last value."""
    logged = {}

    class Logger:
        def log(self, key, value, epoch):
            logged[key] = value

        def get_value(self, key, step):
            return []

    trainer = object.__new__(PartialLabelTrainer)
    trainer.is_ddp, trainer.device, trainer.current_epoch, trainer.logger = True, torch.device("cpu"), 0, Logger()
    seen = float(rank)
    counts = {"tp_hard": [3 * seen, 0], "fp_hard": [seen, 0], "fn_hard": [seen, 0]}
    trainer.on_validation_epoch_end([{"loss": np.array(1.0), **{k: np.array(v) for k, v in counts.items()}}])
    return logged


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both processes left."""
    from nnunetv2.run.run_training import find_free_network_port

    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(worker, args=(str(folder), find_free_network_port()), nprocs=WORLD)
    return folder


@pytest.fixture(scope="module")
def processes(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def test_two_processes_give_the_gradients_of_one(processes):
    _, whole = gradients(network(), MaskedDiceBCE(), slice(None))
    for _, found, *_ in processes:
        supervised = {name for name, gradient in whole.items() if gradient.abs().max() > 0}
        assert supervised <= set(found)
        for name in supervised:
            assert torch.allclose(found[name], whole[name], atol=1e-5), name


@pytest.mark.parametrize("which", range(len(MERGED)))
def test_losses_of_merged_labels_are_over_the_samples_of_all_processes(processes, which):
    whole = merged_gradients(network(), slice(None), ddp=False)[which]
    apart = [merged_gradients(network(), slice(2 * rank, 2 * rank + 2), ddp=False)[which] for rank in range(WORLD)]
    assert any((sum(part[name] for part in apart) / WORLD - whole[name]).abs().max() > 1e-3 for name in whole)
    for _, _, _, found, *_ in processes:
        for name, gradient in whole.items():
            assert torch.allclose(found[which][name], gradient, atol=1e-5), name


def test_processes_with_unequally_many_pairs_pool_them_too(processes):
    value, whole = unequal_dice(slice(None), ddp=False)
    for rows, (*_, (found, gradient), _, _, _) in zip((slice(0, 2), slice(2, 5)), processes, strict=True):
        assert found == pytest.approx(value, abs=1e-6)
        assert torch.allclose(gradient / WORLD, whole[rows], atol=1e-6)


def test_validation_counts_are_summed_over_the_processes(processes):
    for _, _, logged, *_ in processes:
        assert logged["mean_fg_dice"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))


def test_hermes_gives_every_parameter_the_mean_gradient_of_both_processes(processes):
    """Without looking for unused parameters, although one process sees no modality at all."""
    alone = [hermes_gradients(hermes_network(), rank) for rank in range(WORLD)]
    for name in alone[0]:
        mean = (alone[0][name] + alone[1][name]) / WORLD
        for *_, found, _, _ in processes:
            assert torch.allclose(found[name], mean, atol=1e-5), name
    assert all(gradient.abs().sum() > 0 for name, gradient in alone[0].items() if name.startswith("modality_head"))


def test_terms_in_turn_give_both_processes_the_mean_gradient_of_all_terms(processes):
    alone = [unimos_gradients(unimos_network(), rank, ddp=False) for rank in range(WORLD)]
    for name in alone[0]:
        mean = (alone[0][name] + alone[1][name]) / WORLD
        for *_, found, _ in processes:
            assert torch.allclose(found[name], mean, atol=1e-6), name
    assert sum(gradient.abs().sum() for gradient in alone[0].values()) > 0


def test_three_decoders_get_the_gradients_and_the_difficulty_of_the_whole_batch(processes):
    difficulty, whole = generic_gradients(generic_network(), slice(None), ddp=False)
    for *_, (weights, found) in processes:
        assert torch.allclose(weights, difficulty, rtol=1e-4)
        for name, gradient in whole.items():
            assert torch.allclose(found[name], gradient, atol=1e-5), name


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_of_two_streams_leaves_both_processes_with_one_network(folder, norm):
    """But for the running statistics of batch norms, which nnU-Net makes common to all processes on GPUs."""
    first, second = (torch.load(folder / f"{norm}_{rank}.pt") for rank in range(WORLD))
    before = generic_network(norm=norm).state_dict()
    for name in before:
        assert torch.equal(first[name], second[name]) or "running" in name, name
    assert any("running" in name for name in before) == (norm == "batch")
    moved = [name for name in before if not torch.equal(first[name], before[name])]
    assert any(name.startswith("difficulty") for name in moved)
    for part in ("encoder", "denoiser", "reweighted", "decoder"):
        assert any(name.startswith(part) for name in moved), part


def test_a_step_of_views_leaves_both_processes_with_one_network(folder):
    first, second = (torch.load(folder / f"unimos_{rank}.pt") for rank in range(WORLD))
    before = unimos_network().state_dict()
    for name in before:
        assert torch.equal(first[name], second[name]), name
    assert sum(not torch.equal(first[name], before[name]) for name in before) > len(before) / 2
