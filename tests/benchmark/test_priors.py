"""The picture of what the priors of a network have learnt."""

import numpy as np
import pandas as pd
import pytest
import torch
from hermes_models import save_model, toy_world
from paths import ROOT
from worlds import make_trainer

from nnunetv2_conemos.benchmark.plots.priors import draw_priors, prior_similarity
from nnunetv2_conemos.inference.model_folder import read_checkpoint, read_model
from nnunetv2_conemos.methods import MultiTalentTrainer


@pytest.fixture(autouse=True)
def trainers(monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))


def test_similarity_is_the_cosine_between_the_priors_of_labels_that_were_taught(nnunet_folders):
    toy_world(nnunet_folders)
    trainer, folder = save_model(nnunet_folders)
    checkpoint = folder / "fold_0" / "checkpoint_final.pth"
    found = prior_similarity(read_model(folder), read_checkpoint(checkpoint))
    assert list(found.index) == list(found.columns) == ["a", "b"], "nobody annotated c"
    a, b, _ = read_model(folder).network(read_checkpoint(checkpoint)).label_priors()
    assert found.loc["a", "b"] == found.loc["b", "a"]
    assert np.isclose(found.loc["a", "b"], torch.cosine_similarity(a, b, dim=0).item(), atol=1e-6)
    assert torch.equal(a, trainer.average.model.module.label_priors()[0])


def test_a_network_without_priors_has_no_picture(nnunet_folders):
    toy_world(nnunet_folders)
    trainer = make_trainer(nnunet_folders, MultiTalentTrainer)
    trainer.initialize()
    trainer.on_train_start()
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    folder = nnunet_folders / "nnUNet_results" / "Dataset999_World" / "MultiTalentTrainer__nnUNetPlans__tiny"
    checkpoint = read_checkpoint(folder / "fold_0" / "checkpoint_final.pth")
    assert prior_similarity(read_model(folder), checkpoint) is None


def test_the_picture_is_drawn_for_few_and_many_labels(tmp_path):
    rng = np.random.default_rng(0)
    for number in (1, 3, 13):
        names = [f"label {k}" for k in range(number)]
        similarity = pd.DataFrame(rng.uniform(-1, 1, (number, number)), index=names, columns=names)
        draw_priors({"HermesTrainer": similarity, "again": similarity}, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000
