"""Hermes: what makes it the method and no toy (gradients, losses, priors, optimiser, averaging, prediction)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import LABELS, REGIONS, build, heads, patch, plans
from hermes_models import save_model, toy_world
from learning import FEATURES, argmax, grouped_cases, scores
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from paths import ROOT
from timm.optim.lamb import Lamb
from torch import nn
from worlds import NAME, SQUARE_DISC, make_trainer, train, write_world

from nnunetv2_conemos.methods import ConditionalFiLMTrainer, HermesTrainer, HermesTrainer_Adam1en3
from nnunetv2_conemos.methods.hermes.backbone import PublishedUNet, published_unet
from nnunetv2_conemos.methods.hermes.loss import AdaptiveTverskyBCE, adaptive_tversky, modality_loss
from nnunetv2_conemos.methods.hermes.prior_fusion import MODALITY_TOKENS, FusionBlock
from nnunetv2_conemos.methods.hermes.trainer import WarmUpPolyLR
from nnunetv2_conemos.records import Answer, Query, Truth
from nnunetv2_conemos.training.ema import TRAINING, MovingAverage
from nnunetv2_conemos.training.plans_facts import PLANS_KEY

NULL = -1  # last row of a table


def network(dim=2, modalities=("CT", "T1", "T2"), groups=None, labels=LABELS, kind="plain", **options):
    """An untrained network in its evaluation mode, weights perturbed as if trained."""
    manager = plans(dim, kind, labels, **options)
    manager.plans[PLANS_KEY] |= {"modalities": list(modalities)} | ({"groups": groups} if groups else {})
    torch.manual_seed(0)
    made = build(HermesTrainer, manager, labels).eval()
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def query(labels, modality=(1, 2), dim=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(len(labels), 1, *patch(dim), generator=generator)
    return Query(image, torch.tensor(labels), torch.tensor(modality))


def truth_of(labels, known=None, modality=(1, 2), size=16, seed=2):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 4, (len(labels), 1, size, size), generator=generator)
    queried = torch.tensor(labels)
    return Truth(target, queried, queried > 0 if known is None else torch.tensor(known), None, torch.tensor(modality))


@pytest.mark.parametrize("dim", [2, 3])
def test_only_the_priors_that_are_asked_get_a_gradient(dim):
    made = network(dim)
    answer = made(query([[1, 3], [3, 0]], dim=dim))
    (answer.logits[0].sum() + answer.logits[1, 0].sum() + answer.modality.sum()).backward()
    for place in made.places():
        norms = place.labels.grad.norm(dim=1)
        assert norms[[0, 2, NULL]].min() > 0
        assert norms[1] == 0
        norms = place.modalities.grad.flatten(1).norm(dim=1)
        assert norms[[0, 1]].min() > 0
        assert norms[2] == norms[NULL] == 0


def test_labels_that_are_not_annotated_change_nothing_and_padding_has_no_gradient():
    answers, losses, gradients = [], [], []
    for flipped in (False, True):
        made = network()
        truth = truth_of([[1, 3], [3, 0]])
        if flipped:  # label 2 is annotated nowhere: background becomes 2, and 2 becomes background
            other = torch.where(truth.target == 2, 0, torch.where(truth.target == 0, 2, truth.target))
            truth = truth._replace(target=other)
        answer = made(query([[1, 3], [3, 0]]))
        answer.logits.retain_grad()
        loss = AdaptiveTverskyBCE()(answer, truth)
        loss.backward()
        answers.append(answer)
        losses.append(loss)
        gradients.append([p.grad for p in made.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True) if a is not None)
    assert answers[0].logits.grad[1, 1].abs().sum() == 0
    assert answers[0].logits.grad[1, 0].abs().sum() > 0


def counts(tp, fp, fn):
    """Logits and target with these counts, from saturated probabilities."""
    predicted = torch.tensor([1.0] * (tp + fp) + [0.0] * (fn + 10))
    target = torch.tensor([1.0] * tp + [0.0] * fp + [1.0] * fn + [0.0] * 10)
    return (60 * predicted - 30)[None, None], target[None, None], torch.ones(1, 1, len(target))


@pytest.mark.parametrize(
    ("tp", "fp", "fn", "share"),
    [(10, 1, 19, 0.2), (10, 6, 4, 0.6), (10, 4, 6, 0.4), (10, 19, 1, 0.8)],
    ids=["below the clamp", "inside", "inside too", "above"],
)
def test_the_tversky_loss_in_closed_form(tp, fp, fn, share):
    expected = 1 - tp / (tp + share * fp + (1 - share) * fn)
    assert adaptive_tversky(*counts(tp, fp, fn)).item() == pytest.approx(expected, abs=1e-5)


def test_the_share_of_false_positives_gets_a_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 200, generator=generator, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(2, 3, 200, generator=generator) < 0.4).double()
    (ours,) = torch.autograd.grad(adaptive_tversky(logits, target, torch.ones_like(target)).sum(), logits)
    p = torch.sigmoid(logits)
    tp, fp, fn = (p * target).sum(2), (p * (1 - target)).sum(2), ((1 - p) * target).sum(2)
    assert (fp / (fp + fn)).min() > 0.2, "unclamped, so that the quotient below is the same loss"
    assert (fp / (fp + fn)).max() < 0.8
    (direct,) = torch.autograd.grad((1 - tp / (tp + (fp**2 + fn**2) / (fp + fn))).sum(), logits)
    assert torch.allclose(ours, direct, atol=1e-6)


def test_an_absent_label_costs_one_without_gradient_and_a_batch_that_asks_nothing_costs_zero():
    logits = torch.randn(1, 1, 50, requires_grad=True)
    cost = adaptive_tversky(logits, torch.zeros(1, 1, 50), torch.ones(1, 1, 50))
    cost.sum().backward()
    assert cost.item() == 1
    assert logits.grad.abs().max() == 0
    answer = Answer(torch.randn(2, 1, 16, 16, requires_grad=True), torch.randn(2, 3, requires_grad=True))
    nothing = AdaptiveTverskyBCE()(answer, truth_of([[0], [0]], modality=(0, 0)))
    nothing.backward()
    assert nothing.item() == 0
    assert answer.logits.grad.abs().max() == answer.modality.grad.abs().max() == 0


def test_every_pair_counts_the_same():
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(2, 22, dtype=torch.long)
    labels[0], labels[1, 0] = torch.arange(1, 23), 5
    target = torch.randint(0, 23, (2, 1, 16, 16), generator=generator)
    logits = torch.randn(2, 22, 16, 16, generator=generator)
    modality = torch.zeros(2, dtype=torch.long)
    together = AdaptiveTverskyBCE()(
        Answer(logits, torch.zeros(2, 1)), Truth(target, labels, labels > 0, None, modality)
    )
    alone = []
    for row, columns in ((0, range(22)), (1, range(1))):
        for column in columns:
            queried = labels[row : row + 1, column : column + 1]
            truth = Truth(target[row : row + 1], queried, queried > 0, None, modality[:1])
            answer = Answer(logits[row : row + 1, column : column + 1], torch.zeros(1, 1))
            alone.append(AdaptiveTverskyBCE()(answer, truth).item())
    assert together.item() == pytest.approx(np.mean(alone), abs=1e-5)
    assert together.item() != pytest.approx((np.mean(alone[:22]) + alone[22]) / 2, abs=1e-3)


def test_ignored_voxels_do_not_count():
    truth, answer = truth_of([[1, 3], [3, 0]]), network()(query([[1, 3], [3, 0]]))
    valid = torch.rand(truth.target.shape) < 0.5
    noise = torch.where(valid, answer.logits, torch.randn_like(answer.logits))
    plain, other = (
        AdaptiveTverskyBCE()(answer._replace(logits=logits), truth._replace(valid=valid))
        for logits in (answer.logits, noise)
    )
    assert plain.item() == pytest.approx(other.item(), abs=1e-6)


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
def test_an_answer_depends_on_the_modality_and_on_what_else_is_asked(fused):
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


def test_tokens_and_voxels_take_from_each_other():
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
    answer = made(Query(torch.randn(2, 1, *[32] * dim), torch.tensor([[2, 1], [3, 1]])))
    assert prototypes[0].shape == (2, 2, 4)
    assert torch.allclose(answer.logits, torch.einsum("bqf,bf...->bq...", prototypes[0], features[0]), atol=1e-5)


def test_an_unknown_modality_teaches_the_classifier_nothing():
    answer = Answer(torch.zeros(3, 1, 16, 16), torch.randn(3, 3, requires_grad=True))
    loss = modality_loss(answer, truth_of([[1]] * 3, modality=(2, 0, 3)))
    expected = nn.functional.cross_entropy(answer.modality[[0, 2]], torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert answer.modality.grad[1].abs().max() == 0


def test_some_training_samples_are_not_told_their_modality():
    """So that the unknown modality, asked at prediction, is taught although every case declares its own."""
    made = network(modality_dropout=0.5).train()
    made(query([[1, 2, 3]] * 64, modality=[1] * 64)).logits.sum().backward()
    assert all(place.modalities.grad[NULL].norm() > 0 for place in made.places())
    never = network(modality_dropout=0.0).train()
    never(query([[1, 2, 3]] * 64, modality=[1] * 64)).logits.sum().backward()
    assert all(place.modalities.grad[NULL].norm() == 0 for place in never.places())


def test_the_learning_rate_rises_and_decays_as_published():
    optimiser = Lamb([nn.Parameter(torch.ones(1))], lr=2e-3)
    schedule = WarmUpPolyLR(optimiser, 2e-3, 200)
    rates = []
    for epoch in (0, 5, 6, 100):
        schedule.step(epoch)
        rates.append(optimiser.param_groups[0]["lr"])
    assert rates == pytest.approx([9.09e-8, 2e-3, 1.9459e-3, 1.0718e-3], rel=1e-3)
    short = WarmUpPolyLR(optimiser, 2e-3, 20)
    short.step(0)
    assert optimiser.param_groups[0]["lr"] == 2e-3, "short trainings have no warm-up"


def test_one_step_of_lamb_by_hand(nnunet_folders):
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    group = trainer.optimizer.param_groups[0]
    settings = {name: group[name] for name in ("betas", "eps", "weight_decay", "max_grad_norm")}
    assert settings == {"betas": (0.9, 0.999), "eps": 1e-5, "weight_decay": 1e-5, "max_grad_norm": 1.0}
    weight, gradient, rate = torch.tensor([3.0, -4.0]), torch.tensor([1.2, 1.6]), 2e-3
    parameter = nn.Parameter(weight.clone())
    optimiser = Lamb([parameter], lr=rate, **settings)
    parameter.grad = gradient.clone()
    optimiser.step()
    clipped = gradient / 2  # norm 2 -> 1
    update = clipped / (clipped.abs() + 1e-5) + 1e-5 * weight
    expected = weight - rate * (weight.norm() / update.norm()) * update
    assert torch.allclose(parameter.detach(), expected, atol=1e-7)


def test_nnunets_optimiser_is_an_option_and_the_adamw_variant_is_adamw(nnunet_folders):
    toy_world(nnunet_folders)
    for trainer, expected in ((HermesTrainer, "Lamb"), (HermesTrainer_Adam1en3, "AdamW")):
        made = make_trainer(nnunet_folders, trainer)
        made.initialize()
        assert type(made.optimizer).__name__ == expected
    toy_world(nnunet_folders, optimiser="nnU-Net")
    made = make_trainer(nnunet_folders, HermesTrainer)
    made.initialize()
    assert type(made.optimizer).__name__ == "SGD"


def test_the_moving_average_in_closed_form():
    model = nn.Linear(1, 1, bias=False)
    average, values = MovingAverage(model, 0.6), [1.0, 3.0, 7.0, 2.0]
    for value in values:
        model.weight.data.fill_(value)
        average.update()
    expected = values[0]
    for n, value in enumerate(values[1:], start=1):
        decay = min(1 - 1 / (n + 1), 0.6)
        expected = decay * expected + (1 - decay) * value
    assert average.model.module.weight.item() == pytest.approx(expected)
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == values[-1]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_checkpoint_holds_the_average_and_training_goes_on_bit_by_bit(nnunet_folders):
    toy_world(nnunet_folders, modality_dropout=0.0)
    torch.manual_seed(0)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    batches = [next(loader) for _ in range(6)]
    trainer.network.train()
    for batch in batches[:3]:
        trainer.train_step(batch)
    file = f"{trainer.output_folder}/checkpoint_latest.pth"
    trainer.save_checkpoint(file)
    saved = torch.load(file, weights_only=False)
    average = trainer.average.model.module.state_dict()
    assert all(torch.equal(value, average[key]) for key, value in saved["network_weights"].items())
    assert any(not torch.equal(value, average[key]) for key, value in saved[TRAINING]["weights"].items())

    resumed = make_trainer(nnunet_folders, HermesTrainer)
    resumed.initialize()
    resumed.load_checkpoint(file)
    resumed.network.train()
    for batch in batches[3:]:
        trainer.train_step(batch)
        resumed.train_step(batch)
    assert same(trainer.network, resumed.network)
    assert same(trainer.average.model, resumed.average.model)
    assert not same(trainer.network, trainer.average.model.module)


def predictor(folder, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))
    made = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, verbose=False)
    made.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return made


def test_prediction_asks_each_group_and_knows_what_it_was_told(nnunet_folders, monkeypatch):
    toy_world(nnunet_folders)
    trainer, folder = save_model(nnunet_folders)
    made = predictor(folder, monkeypatch)
    with torch.no_grad():
        made.network.load_state_dict(made.list_of_parameters[0])
        logits = made.network.eval()(torch.randn(2, 1, 16, 16))
    assert made.network.groups == [[1, 2]], "the set {a} is part of {a, b}"
    assert made.network.num_modalities == 2
    assert made.network.modality == 0, "two modalities, none named"
    assert (logits[:, 0] == 0).all()
    assert (logits[:, 3] == -30).all(), "nobody annotated c"
    assert same(made.network, trainer.average.model.module)
    whole = made.predict_sliding_window_return_logits(torch.randn(1, 1, 24, 24))
    assert whole.shape == (4, 1, 24, 24)
    monkeypatch.setenv("CONEMOS_MODALITY", "T1")
    assert predictor(folder, monkeypatch).network.modality == 2
    monkeypatch.setenv("CONEMOS_MODALITY", "PET")
    with pytest.raises(ValueError, match=r"knows no modality 'PET'\. It knows CT, T1"):
        predictor(folder, monkeypatch)


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_labels_of_several_groups_are_averaged(labels):
    names = [name for name in labels if name != "background"]
    groups = [names[:2], names[1:]]
    made, image = network(groups=groups, labels=labels), query([[1], [1]]).image
    unknown = torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        found = made(image)
        first = made(Query(image, torch.tensor([[1, 2]] * 2), unknown)).logits
        second = made(Query(image, torch.tensor([[2, 3]] * 2), unknown)).logits
    expected = torch.stack([first[:, 0], (first[:, 1] + second[:, 0]) / 2, second[:, 1]], dim=1)
    assert found.shape[1] == heads(labels)
    assert torch.allclose(found[:, -3:], expected, atol=1e-5)
    with torch.no_grad():
        together = network(groups=groups, labels=labels, asked="all")(image)
        queried = network(groups=groups, labels=labels)(Query(image, torch.tensor([[1, 2, 3]] * 2), unknown)).logits
    assert torch.allclose(together[:, -3:], queried, atol=1e-5)
    assert not torch.allclose(found, together, atol=1e-3)


def test_fewer_labels_are_answered_as_among_all(monkeypatch):
    groups, image = [["a", "b"], ["b", "c"]], query([[1], [1]]).image
    with torch.no_grad():
        every = network(groups=groups)(image)
        monkeypatch.setenv("CONEMOS_LABELS", "a")
        fewer = network(groups=groups)
        passes = []
        fewer.prototypes.register_forward_hook(lambda *_: passes.append(1))
        found = fewer(image)
    assert torch.equal(found[:, 1], every[:, 1])
    assert (found[:, 2:] == -30).all()
    assert len(passes) == 1, "the group that does not hold the label is not asked"


def test_what_does_not_depend_on_the_question_runs_once():
    made = network(groups=[["a", "b"], ["b", "c"]])
    calls = {0: 0, 2: 0}
    for stage in calls:
        made.encoder.stages[stage][0].convs[0].conv.register_forward_hook(
            lambda *_, stage=stage: calls.update({stage: calls[stage] + 1})
        )
    made(query([[1], [1]]).image)
    assert calls == {0: 1, 2: 1}, "the only fusion is behind the last stage"


def test_modalities_are_logged_drawn_by_dataset_and_posed(nnunet_folders, capsys):
    toy_world(nnunet_folders, modality="CT only", unlabelled=True)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    log = capsys.readouterr().out
    assert log.count("`modality` is not declared, so taken as unknown: b") == 1
    assert log.count("Not annotated for anything, so never drawn: u0") == 1
    told = {}
    for _ in range(30):
        batch = next(loader)
        queried, truth = trainer.to_query_and_truth(batch)
        assert torch.equal(queried.modality, truth.modality)
        told |= {str(key)[0]: number for key, number in zip(batch["keys"], queried.modality.tolist(), strict=True)}
    assert told == {"a": 1, "b": 0}


def test_a_changed_set_of_modalities_is_refused(nnunet_folders):
    toy_world(nnunet_folders)
    save_model(nnunet_folders)
    toy_world(nnunet_folders, modality="CT only")
    with pytest.raises(ValueError, match=r"(?s)other modalities than.*'CT', 'T1'.*'CT'"):
        make_trainer(nnunet_folders, HermesTrainer, fold=1)


def test_changed_sets_of_labels_are_refused(nnunet_folders):
    toy_world(nnunet_folders)
    save_model(nnunet_folders)
    file = nnunet_folders / "nnUNet_preprocessed" / NAME / "dataset.json"
    content = json.loads(file.read_text())
    content["sources"]["B"]["annotated"] = ["b"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"(?s)other sets of labels annotated together.*Restore `sources`"):
        make_trainer(nnunet_folders, HermesTrainer, fold=1)
    make_trainer(nnunet_folders, ConditionalFiLMTrainer, fold=1)  # asks one label at a time


@pytest.mark.parametrize(
    ("modalities", "expected"),
    [(("CT", "CT"), 1), (("CT", "T1"), 0), (("CT", None), 0), ((None, None), 0)],
)
def test_prediction_takes_the_modality_of_all_training_cases_or_none(nnunet_folders, modalities, expected, monkeypatch):
    toy_world(nnunet_folders, modality=False)
    file = nnunet_folders / "nnUNet_preprocessed" / NAME / "dataset.json"
    content = json.loads(file.read_text())
    for source, modality in zip(content["sources"].values(), modalities, strict=True):
        source |= {} if modality is None else {"modality": modality}
    file.write_text(json.dumps(content))
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    assert trainer.network.modality == expected
    monkeypatch.setenv("CONEMOS_MODALITY", "unknown")
    assert build_again(trainer).modality == 0


def build_again(trainer):
    configuration = trainer.configuration_manager
    return HermesTrainer.build_network_architecture(trainer.plans_manager, configuration, 1, 4, False)


def test_asking_for_all_labels_leaves_out_those_that_nobody_annotated():
    assert network(groups=[["a"], ["b"]], asked="all").groups == [[1, 2]]


def test_an_interrupted_checkpoint_leaves_the_one_before(nnunet_folders, monkeypatch):
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    file = Path(f"{trainer.output_folder}/checkpoint_latest.pth")
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MovingAverage, "add_training", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before


def test_questions_of_training_have_one_shape(nnunet_folders):
    """However many labels its cases are annotated for, so that torch.compile makes one graph."""
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    shapes_seen = {tuple(trainer.to_query_and_truth(next(loader))[0].labels.shape) for _ in range(20)}
    assert shapes_seen == {(2, 2)}


def test_a_perfect_answer_scores_one_on_what_is_annotated(nnunet_folders):
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    _, validation = trainer.get_dataloaders()
    batch = next(validation)
    _, truth = trainer.to_query_and_truth(batch)
    trainer.average.model.forward = lambda _: Answer(60.0 * truth.onehot() - 30, torch.zeros(2, 2))
    found = trainer.validation_step(batch)
    assert found["tp_hard"].sum() > 0
    assert found["fp_hard"].sum() == found["fn_hard"].sum() == 0


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


def test_two_groups_are_learnt_where_stock_nnunet_forgets(nnunet_folders):
    """One case in ten annotates discs: to stock nnU-Net a disc is background nine times out of ten."""
    groups = {
        "A": {"cases": ["a*"], "annotated": ["square"]},
        "B": {"cases": ["b*"], "annotated": ["disc"]},
    }
    cases = grouped_cases(np.random.default_rng(0), 45, 5)
    write_world(nnunet_folders, cases, SQUARE_DISC, groups, features=FEATURES)
    ours = train(make_trainer(nnunet_folders, HermesTrainer), 300)
    found = scores(ours, np.random.default_rng(1), argmax)
    assert min(found.values()) > 0.8, found
    stock = train(make_trainer(nnunet_folders, nnUNetTrainer), 300)
    forgotten = scores(stock, np.random.default_rng(1), argmax)
    assert forgotten[2] < 0.4, forgotten


def test_other_methods_are_not_told_and_do_not_log_modalities(nnunet_folders, capsys):
    toy_world(nnunet_folders, modality=False)
    make_trainer(nnunet_folders, ConditionalFiLMTrainer).get_tr_and_val_datasets()
    assert "modality" not in capsys.readouterr().out
