"""HermesTrainer: optimiser, averaged weights, modalities of the cases, and that it learns."""

import json

import numpy as np
import pytest
import torch
from hermes_models import save_model, toy_world
from learning import FEATURES, argmax, grouped_cases, scores
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from timm.optim.lamb import Lamb
from torch import nn
from worlds import NAME, SQUARE_DISC, make_trainer, train, write_world

from nnunetv2_conemos.methods import ConditionalFiLMTrainer, HermesTrainer, HermesTrainer_Adam1en3
from nnunetv2_conemos.methods.hermes.loss import HermesOutput
from nnunetv2_conemos.methods.hermes.trainer import WarmUpPolyLR


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


def test_modalities_are_logged_drawn_by_dataset_and_queried(nnunet_folders, capsys):
    toy_world(nnunet_folders, modality="CT only", unlabelled=True)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    log = capsys.readouterr().out
    assert log.count("`modality` is not declared, so it is taken as unknown: b") == 1
    assert log.count("Not annotated for anything, so never sampled: u0") == 1
    given = {}
    for _ in range(30):
        batch = next(loader)
        queried, truth = trainer.to_query_and_truth(batch)
        assert torch.equal(queried.modality, truth.modality)
        given |= {str(key)[0]: number for key, number in zip(batch["keys"], queried.modality.tolist(), strict=True)}
    assert given == {"a": 1, "b": 0}


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
    make_trainer(nnunet_folders, ConditionalFiLMTrainer, fold=1)  # queries one label at a time


def test_queries_of_training_have_one_shape(nnunet_folders):
    """However many labels its cases are annotated for, so that torch.compile makes one graph."""
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    shapes_seen = {tuple(trainer.to_query_and_truth(next(loader))[0].labels.shape) for _ in range(20)}
    assert shapes_seen == {(2, 2)}


def test_perfect_logits_score_one_on_what_is_annotated(nnunet_folders):
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    _, validation = trainer.get_dataloaders()
    batch = next(validation)
    _, truth = trainer.to_query_and_truth(batch)
    trainer.average.model.forward = lambda _: HermesOutput(60.0 * truth.onehot() - 30, torch.zeros(2, 2))
    found = trainer.validation_step(batch)
    assert found["tp_hard"].sum() > 0
    assert found["fp_hard"].sum() == found["fn_hard"].sum() == 0


@pytest.mark.slow
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


def test_other_methods_do_not_log_modalities(nnunet_folders, capsys):
    toy_world(nnunet_folders, modality=False)
    make_trainer(nnunet_folders, ConditionalFiLMTrainer).get_tr_and_val_datasets()
    assert "modality" not in capsys.readouterr().out
