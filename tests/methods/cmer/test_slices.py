"""Slices are drawn whole, with what masks and tags say of each."""

import json

import numpy as np
import pytest
import torch
from tag_worlds import LESION, tagged_world, trained, volume
from worlds import NAME, make_trainer, write_world

from nnunetv2_conemos import cli
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.methods import CMERTrainer
from nnunetv2_conemos.methods.cmer.slices import SliceDataset, Slices


def test_masks_and_tags_say_the_same_and_whole_slices_are_drawn(nnunet_folders):
    tagged_world(nnunet_folders)
    made = make_trainer(nnunet_folders, CMERTrainer)
    assert {case: known.present[:, 0].tolist() for case, known in made.tags.items()} == {
        f"{kind}{i}": [True, False, True, False] for kind in "mt" for i in range(6)
    }
    made.initialize()
    loader, _ = made.get_dataloaders()
    seen = set()
    for _ in range(150):
        batch = next(loader)
        images, tags = made.images_and_tags(batch)
        assert tags.known.all()
        for key, image, present, target in zip(batch["keys"], images, tags.present, batch["target"], strict=True):
            case, number = key.split("::")
            seen.add(key)
            stored = made.dataset_class(made.preprocessed_dataset_folder, [case]).load_case(case)[0]
            assert np.array_equal(image, stored[:, int(number)])
            assert present.item() == (int(number) % 2 == 0)
            assert not target.any()
    assert len({key for key in seen if key[0] == "t"}) == 24, "every tagged case trains"


def test_voxel_labels_of_tagged_cases_change_nothing(nnunet_folders, tmp_path, monkeypatch):
    """Whatever stands in their label maps, the trained weights are the same, bit for bit."""
    weights = []
    for poison in (None, lambda t: 1 - t, np.ones_like):
        tagged_world(nnunet_folders, poison=poison)
        weights.append(trained(nnunet_folders, 4).network.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), other.values(), strict=True))
    tagged_world(nnunet_folders, bits=lambda t: [1, 3])
    different = trained(nnunet_folders, 4).network.state_dict()
    assert not torch.equal(weights[0]["networks.0.classifier.weight"], different["networks.0.classifier.weight"])


def test_only_slices_of_which_something_is_known_are_drawn(nnunet_folders):
    tags = {"cases": {f"t{i}": {"lesion": [False, True, [1]][i % 3]} for i in range(6)}}
    tagged_world(nnunet_folders, masks=0, tags=tags)
    made = make_trainer(nnunet_folders, CMERTrainer)
    train_set, validation = made.get_tr_and_val_datasets()
    drawn = {*train_set.identifiers, *validation.identifiers}
    assert drawn == {f"t{i}::{z}" for i in (0, 2, 3, 5) for z in range(4)}, "true says nothing about slices"


@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore"])
@pytest.mark.parametrize("size", [(13, 10), (16, 11), (12, 16)], ids=str)
def test_a_patch_holds_the_whole_slice_in_its_middle(nnunet_folders, size, ignore):
    tagged_world(nnunet_folders)
    if ignore:
        labels = LESION | {"ignore": 2}
        write_world(nnunet_folders, {f"m{i}": volume(np.random.default_rng(i)) for i in range(6)}, labels, None)
    made = make_trainer(nnunet_folders, CMERTrainer)
    made.initialize()
    ones = np.ones((2, 4, *size), dtype=np.float32)
    case = type("Case", (), {"identifiers": ["m0"], "load_case": lambda *_: (ones, None, None, {})})()
    sliced = SliceDataset(case, made.tags, (-1, *map(int, made.label_manager.all_labels)))
    loader, _ = made.get_dataloaders()
    inner = loader.data_loader
    for _ in range(3):
        image, target, _, properties = sliced.load_case("m0::2")
        low, high = inner.get_bbox(image.shape[1:], False, properties["class_locations"])
        assert all(a <= 0 and b >= side for a, b, side in zip(low, high, (1, *size), strict=True))
        predicted = [-((16 - side) // 2) for side in size]
        assert np.abs(np.subtract(low[1:], predicted)).max() <= 1
        assert target.shape == (1, 1, *size)


def test_a_patch_smaller_than_the_slice_is_refused_with_the_command_that_helps(nnunet_folders, capsys):
    tagged_world(nnunet_folders)
    file = nnunet_folders / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["tiny"]["patch_size"] = [16, 8]
    file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"patch of tiny, \[16, 8\].* up to \[16, 16\].*conemos slices") as refusal:
        make_trainer(nnunet_folders, CMERTrainer)
    assert not list((nnunet_folders / "nnUNet_results").iterdir())
    words = str(refusal.value).partition("conemos ")[2].split()
    assert cli.main([*words, "--batch", "4"]) == 0
    assert json.loads(file.read_text())["configurations"]["tiny_slices"]["patch_size"] == [16, 16]
    made = make_trainer(nnunet_folders, CMERTrainer, configuration="tiny_slices")
    assert made.configuration_manager.batch_size == 4
    assert cli.main([*words, "--batch", "8"]) == 2
    assert "another configuration tiny_slices" in capsys.readouterr().err


def test_tags_of_slices_that_do_not_exist_are_refused_before_anything_is_made(nnunet_folders):
    tagged_world(nnunet_folders, bits=lambda t: [0, 4])
    with pytest.raises(SourceError, match="case 't0', label 'lesion': tagged in slice 4, but the image has 4 slices"):
        make_trainer(nnunet_folders, CMERTrainer)
    assert not list((nnunet_folders / "nnUNet_results").iterdir())


def test_a_label_of_which_no_slice_is_known_is_refused(nnunet_folders):
    tagged_world(nnunet_folders, masks=0, bits=lambda t: True)
    with pytest.raises(SourceError, match="no slice is known to show or not to show lesion"):
        make_trainer(nnunet_folders, CMERTrainer)


def test_volumes_of_which_no_slice_is_known_do_not_validate(nnunet_folders):
    """`true` for a whole volume: nothing to classify, so nothing to validate on."""
    tags = iter([True, *[[0, 1]] * 5])
    tagged_world(nnunet_folders, masks=0, bits=lambda _: next(tags))
    made = make_trainer(nnunet_folders, CMERTrainer)
    assert not made.has_supervision("t0")
    assert made.has_supervision("t1")
    with pytest.raises(SourceError, match="no slice of these cases is known"):
        Slices().identifiers(made.table, [])
