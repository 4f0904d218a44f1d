"""What prediction queries, and on which modality it is conditioned."""

import json

import pytest
import torch
from architectures import LABELS, REGIONS, heads
from hermes_models import network, query, save_model, toy_world
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from paths import ROOT
from worlds import NAME, make_trainer

from nnunetv2_conemos.methods import HermesTrainer
from nnunetv2_conemos.records import Query


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def predictor(folder, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))
    made = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, verbose=False)
    made.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return made


def test_prediction_queries_each_group_and_takes_the_given_modality(nnunet_folders, monkeypatch):
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


def test_fewer_output_labels_have_the_same_logits(monkeypatch):
    groups, image = [["a", "b"], ["b", "c"]], query([[1], [1]]).image
    with torch.no_grad():
        every = network(groups=groups)(image)
        monkeypatch.setenv("CONEMOS_LABELS", '["a"]')
        fewer = network(groups=groups)
        passes = []
        fewer.prototypes.register_forward_hook(lambda *_: passes.append(1))
        found = fewer(image)
    assert torch.equal(found[:, 1], every[:, 1])
    assert (found[:, 2:] == -30).all()
    assert len(passes) == 1, "the group that does not hold the label is not queried"


def test_stages_before_the_first_fusion_run_once_per_image():
    made = network(groups=[["a", "b"], ["b", "c"]])
    calls = dict.fromkeys(range(3), 0)
    for stage in calls:
        made.encoder.stages[stage].register_forward_hook(
            lambda *_, stage=stage: calls.update({stage: calls[stage] + 1})
        )
    made(query([[1], [1]]).image)
    assert calls == {0: 1, 1: 1, 2: 2}, "the only fusion ends the last stage of the encoder"


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


def test_querying_all_labels_leaves_out_those_that_nobody_annotated():
    assert network(groups=[["a"], ["b"]], asked="all").groups == [[1, 2]]
