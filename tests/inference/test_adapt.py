"""`conemos adapt`: backbone by name, labels by name, FiLM at zero where new; nnU-Net accepts the file."""

import json

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from worlds import NAME, make_trainer, shapes, write_world

from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.inference.adapt import Adapted, adapt
from nnunetv2_conemos.methods import ConditionalFiLMTrainer, HermesTrainer
from nnunetv2_conemos.networks.film import FiLM
from nnunetv2_conemos.records import Query

OLD = {"background": 0, "liver": 1, "spleen": 2}
NEW = {"background": 0, "spleen": 1, "kidney": 2, "liver": 3}


def dataset(base, labels, **more):
    rng = np.random.default_rng(0)
    write_world(base, {f"c{i}": shapes(rng, 16) for i in range(6)}, labels, None, batch_size=2, **more)


def saved(base, trainer_class, labels, tmp_path):
    """Checkpoint of a network whose every weight was moved, as training would."""
    dataset(base, labels)
    torch.manual_seed(1)
    trainer = make_trainer(base, trainer_class)
    trainer.initialize()
    for parameter in trainer.network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    trainer.save_checkpoint(str(tmp_path / "old.pth"))
    results = base / "nnUNet_results" / NAME
    results.rename(tmp_path / "old_results")
    return trainer.network


def adapted(tmp_path, checkpoint="old.pth", **more) -> Adapted:
    return adapt(tmp_path / checkpoint, NAME, tmp_path / "start.pth", **({"configuration": "tiny"} | more))


@pytest.fixture(autouse=True)
def no_doorway(monkeypatch):
    """The command finds the trainers whatever the shell says."""
    monkeypatch.setenv("nnUNet_extTrainer", "")


def start(base, tmp_path):
    """A fresh trainer that has loaded the adapted file through nnU-Net's own function."""
    trainer = make_trainer(base, ConditionalFiLMTrainer)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "start.pth"))
    return trainer.network.eval()


def test_another_conditional_model_keeps_its_labels_by_name(nnunet_folders, tmp_path):
    old = saved(nnunet_folders, ConditionalFiLMTrainer, OLD, tmp_path).eval()
    dataset(nnunet_folders, NEW)
    assert adapted(tmp_path).labels == ["spleen", "liver"], "taken by name"
    new = start(nnunet_folders, tmp_path)
    codes, before = new.embed(torch.eye(3)), old.embed(torch.eye(2))
    assert torch.allclose(codes[[2, 0]], before, atol=1e-6), "liver and spleen keep their codes at their new places"
    for ours, theirs in zip(new.decoder.seg_layers, old.decoder.seg_layers, strict=True):
        ours.load_state_dict(theirs.state_dict())  # nnU-Net leaves segmentation layers to be learnt anew
    image = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected, found = (n(Query(image, torch.tensor([q])))[0] for n, q in ((old, [1, 2]), (new, [3, 1])))
    assert torch.allclose(expected, found, atol=1e-6)


def test_a_stock_network_starts_as_itself_for_every_label(nnunet_folders, tmp_path):
    old = saved(nnunet_folders, nnUNetTrainer, OLD, tmp_path).eval()
    dataset(nnunet_folders, NEW)
    assert adapted(tmp_path).labels == [], "none is taken by name"
    new = start(nnunet_folders, tmp_path)
    stock, ours = old.state_dict(), new.state_dict()
    backbone = [k for k in stock if ".seg_layers." not in k]
    assert all(torch.equal(stock[k], ours[k]) for k in backbone)
    films = [m.project for m in new.modules() if isinstance(m, FiLM)]
    assert all(p.weight.abs().max() == 0 and p.bias.abs().max() == 0 for p in films)


def test_what_cannot_be_used_is_refused_and_nothing_is_written(nnunet_folders, tmp_path):
    saved(nnunet_folders, ConditionalFiLMTrainer, OLD, tmp_path)
    with pytest.raises(FileNotFoundError, match="missing"):
        adapted(tmp_path, "missing.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(OSError, match="cannot be read as a checkpoint"):
        adapted(tmp_path, "text.pth")
    torch.save({"weights": 1}, tmp_path / "other.pth")
    with pytest.raises(SourceError, match="lacks network_weights, init_args"):
        adapted(tmp_path, "other.pth")
    with pytest.raises(SourceError, match="no configuration '3d_fullres': tiny"):
        adapted(tmp_path, configuration="3d_fullres")
    with pytest.raises(FileNotFoundError, match="OtherPlans"):
        adapted(tmp_path, plans="OtherPlans")
    file = nnunet_folders / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]["features_per_stage"] = [5, 7, 9]
    file.write_text(json.dumps(plans))
    with pytest.raises(SourceError, match="no backbone weight"):
        adapted(tmp_path)
    assert not (tmp_path / "start.pth").exists()
    (tmp_path / "start.pth").write_text("precious")
    with pytest.raises(FileExistsError, match="--overwrite"):
        adapted(tmp_path)
    assert (tmp_path / "start.pth").read_text() == "precious"


def two_modalities(base, labels, modalities):
    """A dataset with a source for each modality, and plans deep enough to be fused in several places."""
    rng = np.random.default_rng(0)
    names = [name for name in labels if name != "background"]
    sources = {m: {"cases": [f"{m}*"], "annotated": names, "modality": m} for m in modalities}
    cases = {f"{m}{i}": shapes(rng, 32) for m in modalities for i in range(6)}
    write_world(base, cases, labels, sources, batch_size=2)
    file = base / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    arguments = plans["configurations"]["tiny"]["architecture"]["arch_kwargs"]
    arguments |= {"n_stages": 4, "features_per_stage": [4, 8, 16, 32], "strides": [[1, 1]] + [[2, 2]] * 3}
    arguments |= {"kernel_sizes": [[3, 3]] * 4, "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3}
    file.write_text(json.dumps(plans))


def test_priors_of_labels_and_modalities_keep_their_names(nnunet_folders, tmp_path):
    two_modalities(nnunet_folders, OLD, ["CT", "MR"])
    torch.manual_seed(1)
    trainer = make_trainer(nnunet_folders, HermesTrainer)
    trainer.initialize()
    for parameter in trainer.average.model.module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    trainer.save_checkpoint(str(tmp_path / "old.pth"))
    (nnunet_folders / "nnUNet_results" / NAME).rename(tmp_path / "old_results")
    two_modalities(nnunet_folders, NEW, ["MR", "PET"])
    assert adapted(tmp_path, trainer="HermesTrainer").labels == ["spleen", "liver"]
    fresh = make_trainer(nnunet_folders, HermesTrainer)
    fresh.initialize()
    load_pretrained_weights(fresh.network, str(tmp_path / "start.pth"))
    old, new = trainer.average.model.module, fresh.network
    places = list(zip(old.places(), new.places(), strict=True))
    assert len(places) == 3
    for before, after in places:
        assert torch.equal(after.labels[[0, 2, -1]], before.labels[[1, 0, -1]]), "spleen, liver, nothing"
        assert torch.equal(after.modalities[[0, -1]], before.modalities[[1, -1]]), "MR, unknown"
        assert not torch.equal(after.modalities[1], before.modalities[0]), "PET is not CT"
    assert torch.equal(new.modality_head[2].weight[0], old.modality_head[2].weight[1])
