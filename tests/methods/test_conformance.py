"""What every trainer of this package must do: a new method inherits this suite by being found.

Trainers come from nnU-Net's own look-up, plus the method of the documentation.
"""

import io
import pickle
import re

import numpy as np
import pytest
import torch
from architectures import LABELS, REGIONS, build, heads, patch, plans
from every_trainer import EXPORTED, TRAINERS
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from paths import ROOT
from worlds import make_trainer, world

from nnunetv2_conemos import methods
from nnunetv2_conemos.methods.hermes.loss import HermesOutput
from nnunetv2_conemos.networks.planned import planned_unet
from nnunetv2_conemos.records import Query
from nnunetv2_conemos.training.trainer import PartialLabelTrainer, all_settings

FOLDING = (
    methods.ConditionalFiLMTrainer,
    methods.LabelSetFiLMTrainer,
    methods.MultiTalentTrainer,
    methods.MarginalLossTrainer,
    methods.SelfCompletingTrainer,
)


EVERY_TRAINER = pytest.mark.parametrize("trainer", TRAINERS, ids=lambda t: t.__name__)


def readable(value):
    named = {str(LABELS): "labels", str(REGIONS): "regions"}
    if isinstance(value, bool):
        return "ignore" if value else "no ignore"
    return value.__name__ if isinstance(value, type) else named.get(str(value), str(value))


MODES = [(t, labels) for t in TRAINERS for labels in (LABELS, REGIONS) if labels is LABELS or t.method.regions]
IN_EACH_MODE = pytest.mark.parametrize(("trainer", "labels"), MODES, ids=readable)
EVERYWHERE = [
    (t, labels, dim, kind, ignore)
    for t, labels in MODES
    for kind in ("plain", "residual")
    for dim in t.method.dimensions
    for ignore in (False, True)
]


def covering(number, trainer):
    """Two worlds that hold every mode, dimension, architecture and choice of an ignore label of a trainer."""
    kinds = ("plain", "residual") if number % 2 else ("residual", "plain")
    other = REGIONS if trainer.method.regions else LABELS
    first, *_, last = (*trainer.method.dimensions, trainer.method.dimensions[-1])
    return [(trainer, LABELS, last, kinds[0], False), (trainer, other, first, kinds[1], True)]


COVERING = [world for number, trainer in enumerate(TRAINERS) for world in covering(number, trainer)]
IN_A_COVERING_SET = pytest.mark.parametrize(
    ("trainer", "labels", "dim", "kind", "ignore"),
    [pytest.param(*w, marks=[] if w in COVERING else pytest.mark.slow) for w in EVERYWHERE],
    ids=readable,
)
IN_EACH_ARCHITECTURE = pytest.mark.parametrize(
    ("trainer", "labels", "dim", "kind"),
    [w[:4] for w in EVERYWHERE if not w[4] and (w[1] is LABELS or w[2:4] == (2, "plain"))],
    ids=readable,
)


def network_and_image(trainer, dim, kind, labels, deep=True):
    torch.manual_seed(0)
    network = build(trainer, plans(dim, kind, labels), labels, deep=deep).eval()
    for parameter in network.parameters():  # as if trained: no zero-initialised layer hides a mistake
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network, torch.randn(2, 1, *patch(dim))


def scales(output):
    """The logits in an output, fine to coarse."""
    if isinstance(output, HermesOutput):
        return [output.logits]
    return output if isinstance(output, list) else [output]


@pytest.mark.parametrize("name", ["ConditionalFiLMTrainer", "ConditionalFiLMTrainer_5epochs"])
def test_found_by_nnunet_and_picklable(name, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))
    found = recursive_find_trainer_class_by_name(name)
    assert issubclass(found, PartialLabelTrainer)
    assert pickle.loads(pickle.dumps(found)) is recursive_find_trainer_class_by_name(name)


def test_epoch_variants_of_every_trainer_are_named_as_nnunet_names_its_own(nnunet_folders):
    suffixes = ("1epoch", "5epochs", "10epochs", "20epochs", "50epochs", "100epochs", "250epochs")
    for name in EXPORTED:
        for suffix in suffixes:
            assert issubclass(getattr(methods, f"{name}_{suffix}"), getattr(methods, name))
            assert issubclass(getattr(methods, f"{name}_NoMirroring_{suffix}"), getattr(methods, name))
    world(nnunet_folders, LABELS, 2, "plain")
    assert make_trainer(nnunet_folders, methods.ConditionalFiLMTrainer_20epochs).num_epochs == 20
    assert make_trainer(nnunet_folders, methods.ConditionalFiLMTrainer).num_epochs == 1000


@pytest.mark.parametrize("mirroring", [True, False])
def test_mirroring_is_a_choice_for_training_and_prediction(nnunet_folders, mirroring):
    world(nnunet_folders, LABELS, 2, "plain")
    chosen = methods.ConditionalFiLMTrainer if mirroring else methods.ConditionalFiLMTrainer_NoMirroring
    trainer = make_trainer(nnunet_folders, chosen)
    axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1]
    assert axes == trainer.inference_allowed_mirroring_axes == ((0, 1) if mirroring else None)


@IN_EACH_ARCHITECTURE
def test_plain_tensor_gives_nnunets_heads_and_equals_the_query(trainer, dim, kind, labels):
    network, image = network_and_image(trainer, dim, kind, labels, deep=False)
    with torch.no_grad():
        everything = network(image)
        queried = scales(network(Query(image, torch.arange(1, 4).expand(2, -1))))[0]
    assert everything.shape == (2, heads(labels), *patch(dim))
    assert torch.allclose(everything[:, -3:], queried, atol=1e-5)


@IN_EACH_ARCHITECTURE
def test_permuting_the_labels_permutes_the_channels(trainer, dim, kind, labels):
    network, image = network_and_image(trainer, dim, kind, labels)
    with torch.no_grad():
        forward = scales(network(Query(image, torch.tensor([[1, 2, 3]] * 2))))
        permuted = scales(network(Query(image, torch.tensor([[3, 1, 2]] * 2))))
    supervised = all_settings(trainer).get("enable_deep_supervision", True)
    assert len(forward) == (2 if supervised else 1), "deep supervision has every scale"
    for a, b in zip(forward, permuted, strict=True):
        assert torch.allclose(a[:, [2, 0, 1]], b, atol=1e-5)


@IN_EACH_MODE
@pytest.mark.parametrize("queried", [[2], [3, 1], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_it_folds_into_a_stock_network_or_says_so(trainer, labels, queried, kind):
    """`conemos export` relies on it; a method that folds has `stock_weights`."""
    network, image = network_and_image(trainer, 2, kind, labels, deep=False)
    assert hasattr(network, "stock_weights") == (trainer in FOLDING)
    if trainer not in FOLDING:
        return
    if trainer is methods.ConditionalFiLMTrainer and len(queried) > 1:
        with pytest.raises(NotImplementedError, match="one label at a time"):
            network.stock_weights(queried)
        return
    if trainer is methods.MarginalLossTrainer and len(queried) < 3:
        with pytest.raises(NotImplementedError, match="labels of a softmax are predicted together"):
            network.stock_weights(queried)
        return
    configuration = plans(2, kind, labels).get_configuration("tiny")
    stock = planned_unet(configuration, 1, len(queried), False).eval()
    stock.load_state_dict(network.stock_weights(queried))
    with torch.no_grad():
        assert torch.allclose(stock(image), network(Query(image, torch.tensor([queried] * 2))), atol=1e-4)


@EVERY_TRAINER
def test_state_dict_round_trip(trainer):
    network, image = network_and_image(trainer, 2, "residual", LABELS, deep=False)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    buffer.seek(0)
    fresh = build(trainer, plans(2, "residual"), LABELS, deep=False).eval()
    fresh.load_state_dict(torch.load(buffer))
    with torch.no_grad():
        assert torch.equal(network(image), fresh(image))


@IN_A_COVERING_SET
def test_a_step_reaches_every_parameter_and_ten_lower_the_loss(trainer, dim, kind, labels, ignore, nnunet_folders):
    world(nnunet_folders, labels, dim, kind, ignore, unlabelled=trainer.learns_from_unlabelled)
    torch.manual_seed(0)
    np.random.seed(0)
    made = make_trainer(nnunet_folders, trainer)
    made.initialize()
    loader, validation = made.get_dataloaders()
    batch = next(loader)
    made.network.train()
    losses = [float(made.train_step(batch)["loss"]) for _ in range(11)]
    for name, parameter in made.network.named_parameters():
        coarsest = re.match(r"decoder\.(\d\.)?seg_layers\.0\.", name)  # nnU-Net gives it the weight 0
        assert coarsest or parameter.grad is not None, name
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0], losses
    made.network.eval()
    with torch.no_grad():
        counts = made.validation_step(next(validation))
    assert counts["tp_hard"].shape == counts["fn_hard"].shape == (3,)
    assert np.isfinite(counts["loss"])


@EVERY_TRAINER
def test_regions_are_trained_or_refused_before_anything_is_made(trainer, nnunet_folders):
    world(nnunet_folders, REGIONS, 2, "plain")
    if trainer.method.regions:
        assert make_trainer(nnunet_folders, trainer).label_manager.has_regions
    else:
        with pytest.raises(NotImplementedError, match=f"{trainer.__name__} assumes that labels exclude each other"):
            make_trainer(nnunet_folders, trainer)
        assert not list((nnunet_folders / "nnUNet_results").iterdir())


@EVERY_TRAINER
def test_3d_is_trained_or_refused_before_anything_is_made(trainer, nnunet_folders):
    world(nnunet_folders, LABELS, 3, "plain", unlabelled=trainer.learns_from_unlabelled)
    if 3 in trainer.method.dimensions:
        assert len(make_trainer(nnunet_folders, trainer).configuration_manager.patch_size) == 3
    else:
        with pytest.raises(NotImplementedError, match=f"{trainer.__name__} trains 2D configurations only; tiny is 3D"):
            make_trainer(nnunet_folders, trainer)
        assert not list((nnunet_folders / "nnUNet_results").iterdir())
