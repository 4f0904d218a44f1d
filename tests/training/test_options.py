"""Options of a method are checked first, and recorded whole in the plans of a trained model."""

import json
from typing import Literal

import pytest
from architectures import LABELS, build, plans
from worlds import NAME, make_trainer, world

from nnunetv2_conemos.errors import InputError, SourceError
from nnunetv2_conemos.methods import ConditionalFiLMTrainer, DoDNetTrainer, MultiDecoderTrainer, MultiTalentTrainer
from nnunetv2_conemos.networks.spec import PLANS_KEY, RECORDED, MethodOptions, NetworkSpec


class Changed(MethodOptions):
    """An option whose default was another once."""

    earlier = {"size": "small"}  # noqa: RUF012

    size: Literal["small", "large"] = "large"


def spec(**options):
    manager = plans(2, **options)
    return manager, lambda: NetworkSpec.from_plans(manager, manager.get_configuration("tiny"), 1, 4, True)


def test_models_that_do_not_record_their_options_keep_the_defaults_of_their_time():
    for given, then, now in (({}, "small", "large"), ({"size": "large"}, "large", "large")):
        manager, read = spec(**given)
        assert read().options(Changed).size == now
        del manager.plans[PLANS_KEY][RECORDED]
        assert read().options(Changed).size == then
        del manager.plans[PLANS_KEY]  # plans that nothing was trained from
        assert read().options(Changed).size == now


def options_of(base, trainer, **given):
    """The options in the plans of a training, as nnU-Net saves them beside the checkpoint."""
    file = base / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    content = json.loads(file.read_text())
    content["configurations"]["tiny"][PLANS_KEY] = given
    file.write_text(json.dumps(content))
    made = make_trainer(base, trainer)
    assert made.plans_manager.plans[PLANS_KEY][RECORDED]
    return made, made.plans_manager.plans["configurations"]["tiny"][PLANS_KEY]


def test_a_training_records_all_options(nnunet_folders):
    world(nnunet_folders, LABELS, 2, "plain")
    every = {"last_layers": 0, "after_nonlinearity": False, "image_features": True}
    assert options_of(nnunet_folders, ConditionalFiLMTrainer, image_features=True)[1] == every
    assert options_of(nnunet_folders, MultiTalentTrainer)[1] == {"reduction": "sum"}
    assert options_of(nnunet_folders, MultiTalentTrainer, reduction="mean")[1] == {"reduction": "mean"}
    assert options_of(nnunet_folders, MultiDecoderTrainer)[1] == {}


def test_what_is_no_option_is_refused_before_anything_is_made(nnunet_folders):
    world(nnunet_folders, LABELS, 2, "plain")
    for trainer, given, message in (
        (MultiTalentTrainer, {"reduction": "max"}, "reduction: Input should be 'mean' or 'sum'"),
        (MultiDecoderTrainer, {"reduction": "sum"}, "Options are: none"),
    ):
        with pytest.raises(InputError, match=message):
            options_of(nnunet_folders, trainer, **given)
    assert not list((nnunet_folders / "nnUNet_results").iterdir())


def test_the_reduction_is_that_of_the_plans(nnunet_folders):
    world(nnunet_folders, LABELS, 2, "plain")
    for given, summed in (({}, True), ({"reduction": "mean"}, False)):
        made, _ = options_of(nnunet_folders, MultiTalentTrainer, **given)
        made.initialize()
        assert made.loss.loss.summed == summed


def test_a_model_folder_has_one_set_of_options(nnunet_folders):
    """Old models count with the defaults of their time."""
    world(nnunet_folders, LABELS, 2, "plain")
    made, _ = options_of(nnunet_folders, DoDNetTrainer)
    folder = nnunet_folders / "nnUNet_results" / NAME / "DoDNetTrainer__nnUNetPlans__tiny"
    trained = made.plans_manager.plans
    (folder / "plans.json").write_text(json.dumps(trained))
    options_of(nnunet_folders, DoDNetTrainer)
    del trained[PLANS_KEY][RECORDED], trained["configurations"]["tiny"][PLANS_KEY]
    (folder / "plans.json").write_text(json.dumps(trained))
    with pytest.raises(SourceError, match=r'other options \(controller: "after_norm", now "before_norm"\)'):
        options_of(nnunet_folders, DoDNetTrainer)
    options_of(nnunet_folders, DoDNetTrainer, controller="after_norm")


def test_a_network_of_an_old_model_is_the_old_one():
    manager = plans(2)
    assert build(DoDNetTrainer, manager).seen is not None
    del manager.plans[PLANS_KEY][RECORDED]
    assert build(DoDNetTrainer, manager).seen is None
