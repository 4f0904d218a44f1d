"""CMERTrainer: what it draws and learns from, what it refuses, its thresholds, and the commands of nnU-Net."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from paths import ROOT
from phantoms import PHANTOM
from raw_worlds import read_nifti
from worlds import NAME, make_trainer, train, write_world

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.methods import CMERTrainer, CMERTrainer_NoMirroring, ConditionalFiLMTrainer, UniMOSTrainer
from nnunetv2_conemos.methods.cmer.loss import Tags
from nnunetv2_conemos.methods.cmer.slices import SliceDataset, Slices
from nnunetv2_conemos.methods.cmer.thresholds import best_threshold, dice_by_threshold

LABELS = {"background": 0, "lesion": 1}
EPS = {"width_divisor": 16}
MASKS = {"cases": ["m*"], "annotated": ["lesion"]}
TAGGED = {"cases": ["t*"], "annotated": [], "tagged": ["lesion"]}


def volume(rng, channels=2, depth=4, size=16):
    target = np.zeros((depth, size, size), dtype=np.int8)
    for z in range(0, depth, 2):
        y, x = rng.integers(2, size - 6, 2)
        target[z, y : y + 4, x : x + 4] = 1
    image = rng.normal(0, 0.3, (channels, *target.shape)) + target
    return image.astype(np.float32), target


def slices_of(target):
    return np.flatnonzero((target == 1).any((1, 2))).tolist()


def world(base, masks=6, tagged=6, poison=None, bits=slices_of, channels=2, options=EPS, depth=4, **more):
    """Cases with label maps (m*) and with tags (t*), whose label maps are zeros or poisoned."""
    rng = np.random.default_rng(0)
    cases, tags = {}, {}
    for i in range(masks):
        cases[f"m{i}"] = volume(rng, channels, depth)
    for i in range(tagged):
        image, target = volume(rng, channels, depth)
        cases[f"t{i}"] = image, np.zeros_like(target) if poison is None else poison(target)
        tags[f"t{i}"] = {"lesion": bits(target)}
    sources = {name: s for name, s, n in (("masks", MASKS, masks), ("tagged", TAGGED, tagged)) if n}
    more = {"tags": {"cases": tags}} | more
    return write_world(base, cases, LABELS, sources, options=options, **more)


def trained(base, steps=2, trainer=CMERTrainer):
    torch.manual_seed(0)
    made = make_trainer(base, trainer)
    train(made, steps)
    return made


def log_of(trainer):
    return Path(trainer.log_file).read_text()


# ---- what is drawn


def test_masks_and_tags_say_the_same_and_whole_slices_are_drawn(nnunet_folders):
    world(nnunet_folders)
    made = make_trainer(nnunet_folders, CMERTrainer)
    assert {case: known.present[:, 0].tolist() for case, known in made.tags.items()} == {
        f"{kind}{i}": [True, False, True, False] for kind in "mt" for i in range(6)
    }
    made.initialize()
    loader, _ = made.get_dataloaders()
    seen = set()
    for _ in range(150):
        batch = next(loader)
        images, tags = made.tagged_batch(batch)
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
        world(nnunet_folders, poison=poison)
        weights.append(trained(nnunet_folders, 4).network.state_dict())
    for other in weights[1:]:
        assert all(torch.equal(a, b) for a, b in zip(weights[0].values(), other.values(), strict=True))
    world(nnunet_folders, bits=lambda t: [1, 3])
    different = trained(nnunet_folders, 4).network.state_dict()
    assert not torch.equal(weights[0]["networks.0.classifier.weight"], different["networks.0.classifier.weight"])


def test_only_slices_of_which_something_is_known_are_drawn(nnunet_folders):
    tags = {"cases": {f"t{i}": {"lesion": [False, True, [1]][i % 3]} for i in range(6)}}
    world(nnunet_folders, masks=0, tags=tags)
    made = make_trainer(nnunet_folders, CMERTrainer)
    train_set, validation = made.get_tr_and_val_datasets()
    drawn = {*train_set.identifiers, *validation.identifiers}
    assert drawn == {f"t{i}::{z}" for i in (0, 2, 3, 5) for z in range(4)}, "true says nothing about slices"


@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore"])
@pytest.mark.parametrize("size", [(13, 10), (16, 11), (12, 16)], ids=str)
def test_a_patch_holds_the_whole_slice_in_its_middle(nnunet_folders, size, ignore):
    world(nnunet_folders)
    if ignore:
        labels = LABELS | {"ignore": 2}
        write_world(nnunet_folders, {f"m{i}": volume(np.random.default_rng(i)) for i in range(6)}, labels, None)
    made = make_trainer(nnunet_folders, CMERTrainer)
    made.initialize()
    ones = np.ones((2, 4, *size), dtype=np.float32)
    case = type("Case", (), {"identifiers": ["m0"], "load_case": lambda *_: (ones, None, None, {})})()
    sliced = SliceDataset(case, made.tags, (-1, *made.label_manager.all_labels))
    loader, _ = made.get_dataloaders()
    inner = loader.data_loader
    for _ in range(3):
        image, target, _, properties = sliced.load_case("m0::2")
        low, high = inner.get_bbox(image.shape[1:], False, properties["class_locations"])
        assert all(a <= 0 and b >= side for a, b, side in zip(low, high, (1, *size), strict=True))
        predicted = [-((16 - side) // 2) for side in size]
        assert np.abs(np.subtract(low[1:], predicted)).max() <= 1
        assert target.shape == (1, 1, *size)


# ---- what is refused, and said


def test_a_patch_smaller_than_the_slice_is_refused_with_the_command_that_helps(nnunet_folders, capsys):
    world(nnunet_folders)
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
    world(nnunet_folders, bits=lambda t: [0, 4])
    with pytest.raises(SourceError, match="case 't0', label 'lesion': tagged in slice 4, but the image has 4 slices"):
        make_trainer(nnunet_folders, CMERTrainer)
    assert not list((nnunet_folders / "nnUNet_results").iterdir())


def test_a_label_of_which_no_slice_is_known_is_refused(nnunet_folders):
    world(nnunet_folders, masks=0, bits=lambda t: True)
    with pytest.raises(SourceError, match="no slice is known to show or not to show lesion"):
        make_trainer(nnunet_folders, CMERTrainer)


def test_volumes_of_which_no_slice_is_known_do_not_validate(nnunet_folders):
    """`true` for a whole volume: nothing to classify, so nothing to validate on."""
    tags = iter([True, *[[0, 1]] * 5])
    world(nnunet_folders, masks=0, bits=lambda _: next(tags))
    made = make_trainer(nnunet_folders, CMERTrainer)
    assert not made.has_supervision("t0")
    assert made.has_supervision("t1")
    with pytest.raises(SourceError, match="no slice of these cases is known"):
        Slices().identifiers(made.table, [])


@pytest.mark.parametrize("fusion", [2, -1])
def test_a_channel_that_does_not_exist_is_refused_before_the_training(nnunet_folders, fusion):
    world(nnunet_folders, options={"fusion": fusion})
    with pytest.raises(ValueError, match=f"`fusion`: expected a channel from 0 to 1, found {fusion}"):
        make_trainer(nnunet_folders, CMERTrainer).initialize()


def test_a_label_that_is_almost_everywhere_is_warned_about(nnunet_folders, capsys):
    world(nnunet_folders, masks=0, bits=lambda t: [0, 1, 2, 3])
    made = make_trainer(nnunet_folders, CMERTrainer)
    made.get_tr_and_val_datasets()
    assert log_of(made).count("'lesion' is present in 100% of the training slices") == 1
    assert "say nothing about where it is" in capsys.readouterr().out
    world(nnunet_folders)
    make_trainer(nnunet_folders, CMERTrainer).get_tr_and_val_datasets()
    assert "'lesion' is present" not in capsys.readouterr().out


def test_one_input_channel_trains_without_the_terms_between_channels_and_says_so_once(nnunet_folders):
    world(nnunet_folders, channels=1)
    made = trained(nnunet_folders, 3)
    assert log_of(made).count("One input channel: the terms between channels are left out.") == 1
    assert all(p.grad is not None for p in made.network.parameters())
    world(nnunet_folders, options={**EPS, "reduction": "sum"})
    assert "Cross-modality term: sum over the pixels." in log_of(trained(nnunet_folders, 1))


def test_other_trainers_take_tagged_cases_for_unlabelled(nnunet_folders):
    world(nnunet_folders, options={})
    semi = make_trainer(nnunet_folders, UniMOSTrainer, initial_lr=1e-3)
    semi.initialize()
    loader, _ = semi.get_dataloaders()
    assert {key[0] for _ in range(5) for key in next(loader)[1]["keys"]} == {"t"}
    world(nnunet_folders, masks=0)
    for trainer in (UniMOSTrainer, ConditionalFiLMTrainer):
        with pytest.raises(SourceError, match=f"{trainer.__name__} learns from annotated labels only"):
            make_trainer(nnunet_folders, trainer)


def test_without_mirroring_sides_are_kept(nnunet_folders):
    world(nnunet_folders)
    assert make_trainer(nnunet_folders, CMERTrainer_NoMirroring).families == ("translation", "scaling")
    world(nnunet_folders, options={**EPS, "transforms": ["flip", "rotation"]})
    assert make_trainer(nnunet_folders, CMERTrainer).families == ("flip", "rotation")
    with pytest.raises(ValueError, match="flip, rotation confuse left and right"):
        _ = make_trainer(nnunet_folders, CMERTrainer_NoMirroring).families


# ---- validation and thresholds


def test_validation_counts_classified_slices_over_the_channels(nnunet_folders):
    world(nnunet_folders)
    made = trained(nnunet_folders, 1)
    made.network.eval()
    image = torch.randn(4, 2, 16, 16)
    found = made.network.activation(image).found[:, :, 0]
    present, known = torch.tensor([[True], [True], [False], [True]]), torch.tensor([[True], [True], [True], [False]])
    made.tagged_batch = lambda _: (image, Tags(present, known))
    with torch.no_grad():
        counts = made.validation_step({})
    assert counts["tp_hard"].tolist() == [found[:2].sum().item()]
    assert counts["fp_hard"].tolist() == [found[2].sum().item()]
    assert counts["fn_hard"].tolist() == [(~found[:2]).sum().item()]


def test_the_best_threshold_is_that_of_the_best_mean_dice():
    activation = np.linspace(0, 1, 101)
    everything = np.ones(101, dtype=bool)
    low, high = (dice_by_threshold(activation, activation > t, everything) for t in (0.299, 0.601))
    assert best_threshold(np.stack([low]))[0] == pytest.approx(0.3)
    assert best_threshold(np.stack([high]))[0] == pytest.approx(0.6)
    absent = dice_by_threshold(activation, activation > 2, everything)
    assert np.isnan(absent).all()
    assert best_threshold(np.stack([absent, high]))[0] == pytest.approx(0.6)
    assert best_threshold(np.stack([absent])) is None
    assert dice_by_threshold(activation, activation > 0.5, activation > 0.45)[0] == pytest.approx(100 / 105, abs=0.01)


def test_thresholds_are_chosen_on_validation_masks_only_and_saved_in_both_checkpoints(nnunet_folders, monkeypatch):
    world(nnunet_folders)
    made = trained(nnunet_folders, 1)
    validation = made.do_split()[1]
    assert validation
    assert all(case.startswith("m") for case in validation)
    queried = []
    levels = iter((0.3, 0.7))

    def fused(network, image, patch, at_once, device):
        queried.append(image.shape)
        level = levels_now[0]
        return np.where(truth_of(queried), level + 0.02, level - 0.02)[None]

    truths = [made.dataset_class(made.preprocessed_dataset_folder, [c]).load_case(c)[1][0] == 1 for c in validation]

    def truth_of(calls):
        return truths[(len(calls) - 1) % len(truths)]

    levels_now: list = [next(levels)]
    monkeypatch.setattr("nnunetv2_conemos.methods.cmer.trainer.fused_volume", fused)
    made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_best.pth"))
    tune, calls = made.tune_thresholds, []

    def watched():
        tune()
        calls.append(made.cam.threshold.item())
        levels_now[0] = next(levels, None)

    made.tune_thresholds = watched
    made.on_train_end()
    assert calls == pytest.approx([0.3, 0.7])
    saved = {}
    for name in ("final", "best"):
        file = Path(made.output_folder) / f"checkpoint_{name}.pth"
        saved[name] = torch.load(file, weights_only=False)["network_weights"]["threshold"].item()
    assert saved == pytest.approx({"final": 0.3, "best": 0.7})
    assert "Threshold of 'lesion': 0.30 (Dice 1.000" in log_of(made)


def test_without_validation_masks_the_threshold_stays_and_there_is_no_final_dice(nnunet_folders):
    world(nnunet_folders, masks=0)
    made = trained(nnunet_folders, 1)
    assert made.do_split()[1], "tagged cases validate the classification"
    made.tune_thresholds()
    made.perform_actual_validation()
    assert made.cam.threshold.tolist() == [0.5]
    assert "Threshold of 'lesion': 0.50 (no label map to choose on)" in log_of(made)
    assert "No validation case has a label map: there is no final Dice." in log_of(made)
    assert not (Path(made.output_folder) / "validation").exists()


# ---- the commands


def test_the_commands_of_nnunet_train_resume_and_predict(preprocessed_phantom, tmp_path, monkeypatch, capsys):
    """2D slices of volumes, two sources tagged and one with masks; all in this process."""
    raw, done = (preprocessed_phantom / part / PHANTOM for part in ("nnUNet_raw", "nnUNet_preprocessed"))
    content = json.loads((raw / "dataset.json").read_text())
    content["sources"]["site_a"] |= {"annotated": [], "tagged": ["liver"]}
    cases = sorted({file.name[:-12] for file in (raw / "imagesTr").glob("site_a_*")})
    content["tags"] = {"axis": "z", "cases": {case: {"liver": [4, 5, 6, 7]} for case in cases}}
    for folder in (raw, done):
        (folder / "dataset.json").write_text(json.dumps(content))
    assert cli.main(["slices", "901", "--batch", "4", "--name", "whole"]) == 0
    plans = json.loads((done / "nnUNetPlans.json").read_text())
    plans["configurations"]["whole"]["conemos"] = EPS
    (done / "nnUNetPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_extTrainer", str(ROOT / "trainers"))
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.default_num_processes", 1)

    def fresh(epochs, resume=False):
        made = CMERTrainer(plans | {"continue_training": resume}, "whole", 0, content, torch.device("cpu"))
        made.num_iterations_per_epoch = made.num_val_iterations_per_epoch = 2
        made.num_epochs = epochs
        return made

    first = fresh(1)
    first.run_training()
    final = Path(first.output_folder) / "checkpoint_final.pth"
    trainer = fresh(2, resume=True)
    trainer.initialize()
    trainer.load_checkpoint(str(final))
    assert trainer.current_epoch == 1
    resumed = trainer.network.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in first.network.state_dict().items())
    steps = [state["step"].item() for state in trainer.optimizer.state_dict()["state"].values()]
    assert set(steps) == {2.0}, "of the optimiser, which goes on"
    trainer.run_training()
    assert trainer.current_epoch == 2
    trainer.perform_actual_validation()
    checkpoint = torch.load(final, weights_only=False)
    checkpoint["network_weights"]["threshold"][:] = -0.01  # everything but what is classified as absent
    torch.save(checkpoint, final)
    predicted = predict(raw, tmp_path / "out", monkeypatch)
    assert any(p.any() for p in predicted), "the threshold of the checkpoint is used"
    checkpoint["network_weights"]["threshold"][:] = 1.01
    torch.save(checkpoint, final)
    assert not any(p.any() for p in predict(raw, tmp_path / "none", monkeypatch))
    annotated_by_the_model(final.parent.parent, raw, cases, checkpoint["network_weights"]["threshold"])
    assert "'liver' was annotated in 0 of 12 slices that are tagged with it: look at" in capsys.readouterr().out


def annotated_by_the_model(model, raw, cases, threshold):
    """`conemos cams` with a model that finds nothing: background where the tags say so and everywhere else."""
    assert threshold[0] > 1
    out = raw.parent / "Dataset902_Stage2"
    how = ["-f", "0", "-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0"]
    words = ["cams", str(model), "-d", "901", "-o", out.name, *how]
    assert cli.main([*words, "--margin", "0.6"]) == 2
    assert cli.main([*words, "--margin", "0.05"]) == 0
    content = json.loads((out / "dataset.json").read_text())
    assert content["sources"]["site_a (pseudo)"]["annotated"] == ["liver"]
    assert content["labels"]["ignore"] == 5
    table = SourceTable.from_dataset_json(content, raw_cases(out))
    assert all(table.annotated(case) == ("liver",) for case in cases)
    for case, files in raw_cases(out).items():
        ours, theirs = (read_nifti(Path(file)) for file in (files["label"], raw / "labelsTr" / f"{case}.nii.gz"))
        assert ours.shape == theirs.shape
        if case in cases:
            assert not ours[[z for z in range(len(ours)) if z not in (4, 5, 6, 7)]].any(), "tagged as absent"
            assert set(np.unique(ours)) <= {0, 5}
        else:
            assert np.array_equal(ours, theirs)
    folds = json.loads((out / "splits_final.json").read_text())
    assert not any(set(cases) & set(fold["val"]) for fold in folds)
    assert cli.main(words) == 2, "an existing dataset is not replaced"


def predict(raw, output, monkeypatch):
    words = ["-i", str(raw / "imagesTs"), "-o", str(output), "-d", "901", "-c", "whole", "-tr", "CMERTrainer"]
    how = ["-f", "0", "-device", "cpu", "--disable_tta", "-npp", "0", "-nps", "0"]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *words, *how])
    threads = torch.get_num_threads()
    predict_entry_point()
    torch.set_num_threads(threads)  # which prediction on a CPU raises
    files = sorted(output.glob("*.nii.gz"))
    assert files
    maps = [read_nifti(file) for file in files]
    for file, found in zip(files, maps, strict=True):
        assert found.shape == read_nifti(raw / "imagesTs" / f"{file.name[:-7]}_0000.nii.gz").shape
    return maps
