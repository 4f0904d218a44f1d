"""CMERTrainer: what it accepts, what a step and a validation do."""

import pytest
import torch
from tag_worlds import TINY, log_of, tagged_world, trained
from worlds import make_trainer

from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.methods import CMERTrainer, CMERTrainer_NoMirroring, ConditionalFiLMTrainer, UniMOSTrainer
from nnunetv2_conemos.methods.cmer.loss import Tags


@pytest.mark.parametrize("fusion", [2, -1])
def test_a_channel_that_does_not_exist_is_refused_before_the_training(nnunet_folders, fusion):
    tagged_world(nnunet_folders, options={"fusion": fusion})
    with pytest.raises(ValueError, match=f"`fusion`: expected a channel from 0 to 1, found {fusion}"):
        make_trainer(nnunet_folders, CMERTrainer).initialize()


def test_a_label_that_is_almost_everywhere_is_warned_about(nnunet_folders, capsys):
    tagged_world(nnunet_folders, masks=0, bits=lambda t: [0, 1, 2, 3])
    made = make_trainer(nnunet_folders, CMERTrainer)
    made.get_tr_and_val_datasets()
    assert log_of(made).count("'lesion' is present in 100% of the training slices") == 1
    assert "say nothing about where it is" in capsys.readouterr().out
    tagged_world(nnunet_folders)
    make_trainer(nnunet_folders, CMERTrainer).get_tr_and_val_datasets()
    assert "'lesion' is present" not in capsys.readouterr().out


def test_one_input_channel_trains_without_the_terms_between_channels_and_says_so_once(nnunet_folders):
    tagged_world(nnunet_folders, channels=1)
    made = trained(nnunet_folders, 3)
    assert log_of(made).count("One input channel: the terms between channels are left out.") == 1
    assert all(p.grad is not None for p in made.network.parameters())
    tagged_world(nnunet_folders, options={**TINY, "reduction": "sum"})
    assert "Cross-modality term: sum over the pixels." in log_of(trained(nnunet_folders, 1))


def test_other_trainers_take_tagged_cases_for_unlabelled(nnunet_folders):
    tagged_world(nnunet_folders, options={})
    semi = make_trainer(nnunet_folders, UniMOSTrainer, initial_lr=1e-3)
    semi.initialize()
    loader, _ = semi.get_dataloaders()
    assert {key[0] for _ in range(5) for key in next(loader)[1]["keys"]} == {"t"}
    tagged_world(nnunet_folders, masks=0)
    for trainer in (UniMOSTrainer, ConditionalFiLMTrainer):
        with pytest.raises(SourceError, match=f"{trainer.__name__} learns from annotated labels only"):
            make_trainer(nnunet_folders, trainer)


def test_without_mirroring_sides_are_kept(nnunet_folders):
    tagged_world(nnunet_folders)
    assert make_trainer(nnunet_folders, CMERTrainer_NoMirroring).families == ("translation", "scaling")
    tagged_world(nnunet_folders, options={**TINY, "transforms": ["flip", "rotation"]})
    assert make_trainer(nnunet_folders, CMERTrainer).families == ("flip", "rotation")
    with pytest.raises(ValueError, match="flip, rotation confuse left and right"):
        _ = make_trainer(nnunet_folders, CMERTrainer_NoMirroring).families


def test_validation_counts_classified_slices_over_the_channels(nnunet_folders):
    tagged_world(nnunet_folders)
    made = trained(nnunet_folders, 1)
    made.network.eval()
    image = torch.randn(4, 2, 16, 16)
    found = made.network.activation(image).found[:, :, 0]
    present, known = torch.tensor([[True], [True], [False], [True]]), torch.tensor([[True], [True], [True], [False]])
    made.images_and_tags = lambda _: (image, Tags(present, known))
    with torch.no_grad():
        counts = made.validation_step({})
    assert counts["tp_hard"].tolist() == [found[:2].sum().item()]
    assert counts["fp_hard"].tolist() == [found[2].sum().item()]
    assert counts["fn_hard"].tolist() == [(~found[:2]).sum().item()]
