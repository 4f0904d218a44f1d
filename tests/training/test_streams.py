"""The second loader of unlabelled cases, and steps on both streams."""

import json
from collections import Counter

import pytest
import torch
from worlds import NAME, make_trainer, two_stream_world

from nnunetv2_conemos.methods import UniMOSTrainer
from nnunetv2_conemos.methods.unimos.trainer import CONFIDENT_SHARE
from nnunetv2_conemos.training.curves import within_epochs
from nnunetv2_conemos.training.streams import Streams


def test_two_loaders_are_drawn_from_side_by_side(nnunet_folders, capsys):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    loader, validation = trainer.get_dataloaders()
    assert "6 training cases are not annotated for anything: the unlabelled stream" in capsys.readouterr().out
    drawn, halves = set(), []
    for _ in range(20):
        labelled, unlabelled = next(loader)
        assert {str(key)[0] for key in labelled["keys"]} <= {"a", "b"}
        assert {str(key)[0] for key in unlabelled["keys"]} == {"u"}
        assert len(unlabelled["keys"]) == 4
        drawn |= set(map(str, unlabelled["keys"]))
        halves.append((list(unlabelled["keys"][:2]), list(unlabelled["keys"][2:])))
        assert {str(key)[0] for key in next(validation)["keys"]} <= {"a", "b"}
    assert len(drawn) == 6
    assert any(a != b for a, b in halves)


def test_unlabelled_cases_that_a_split_leaves_out_are_named(nnunet_folders, capsys):
    two_stream_world(nnunet_folders)
    split = nnunet_folders / "nnUNet_preprocessed" / NAME / "splits_final.json"
    split.write_text(json.dumps([{"train": ["a0", "b0", "u00"], "val": ["a1"]}]))
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    trainer.get_dataloaders()
    said = capsys.readouterr().out
    assert "5 cases without annotations are in no part of fold 0 of splits_final.json" in said
    assert "u05" in said


def test_weak_views_keep_intensities(nnunet_folders):
    """Nothing but space is augmented, and what lies outside the image stays known."""
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    loader, _ = trainer.get_dataloaders()
    transforms = loader.unlabelled.data_loader.transforms.transforms
    names = [type(getattr(t, "transform", t)).__name__ for t in transforms]
    assert "SpatialTransform" in names
    assert "MirrorTransform" in names
    intensities = ("Noise", "Blur", "Bright", "Contrast", "Gamma", "LowResolution", "RemoveLabel")
    assert not [name for name in names if any(word in name for word in intensities)]
    annotated = [type(getattr(t, "transform", t)).__name__ for t in loader.labelled.data_loader.transforms.transforms]
    assert all(any(word in name for name in annotated) for word in intensities), "what nnU-Net does otherwise"


def test_worker_processes_are_ended(nnunet_folders, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer, num_iterations_per_epoch=1, num_val_iterations_per_epoch=1)
    trainer.num_epochs = 1
    trainer.run_training()
    assert isinstance(trainer.dataloader_train, Streams)
    for loader in (trainer.dataloader_train.labelled, trainer.dataloader_train.unlabelled):
        assert not [process for process in loader._processes if process.is_alive()]
    assert (nnunet_folders.glob("nnUNet_results/*/*/fold_0/streams.png")).__next__().is_file()
    logged = trainer.logger.local_logger.my_fantastic_logging
    assert len(logged[CONFIDENT_SHARE]) == len(logged["unsupervised loss"]) == 1
    assert logged[within_epochs(CONFIDENT_SHARE)] == [(1.0, logged[CONFIDENT_SHARE][0])]


def test_a_scaler_changes_neither_gradient_nor_step_and_skips_what_overflows(nnunet_folders):
    """Mixed precision as on a GPU: several terms are scaled alike, unscaled once, and clipped after that."""
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    query, truths = trainer.to_query_and_truth(next(trainer.get_dataloaders()[0])[0])
    terms = [lambda w=w: w * trainer.loss(trainer.network(query), truths) for w in (0.5, 0.3, 0.2)]
    start = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    stepped = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        trainer.network.load_state_dict(start)
        trainer.optimizer.state.clear()
        trainer.grad_scaler = scaler
        trainer.backward_in_turn(terms)
        stepped.append([p.detach().clone() for p in trainer.network.parameters()])
    assert any(not torch.equal(p, start[name]) for name, p in trainer.network.named_parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*stepped, strict=True))
    trainer.network.load_state_dict(start)
    trainer.backward_in_turn([*terms, lambda: torch.inf * trainer.loss(trainer.network(query), truths)])
    assert all(torch.equal(p, start[name]) for name, p in trainer.network.named_parameters()), "skipped"
    assert trainer.grad_scaler.get_scale() == 512


def test_sources_of_more_weight_are_drawn_more_often_unlabelled_too(nnunet_folders):
    two_stream_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, UniMOSTrainer)
    trainer.initialize()
    unlabelled = [case for case in trainer.table.cases if not trainer.table.known(case).any()]
    weights = dict(zip(unlabelled, (3.0, *[1.0] * (len(unlabelled) - 1)), strict=True))
    trainer.table.weight = lambda case: weights.get(case, 1.0)
    stream = trainer.get_dataloaders()[0].unlabelled.data_loader
    times = Counter(map(str, stream._data.identifiers))
    assert times[unlabelled[0]] == pytest.approx(3 * times[unlabelled[1]], abs=3)
