"""The frame around nnU-Net's trainer: refusals before anything is written, splits, sampling, validation."""

import json

import numpy as np
import pytest
import torch
from worlds import CONFIGURATION, NAME, make_trainer, shapes, write_world

from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.methods import ConditionalFiLMTrainer

SQUARE_DISC = {"background": 0, "square": 1, "disc": 2}
SOURCES = {
    "A": {"cases": ["a*"], "annotated": ["square"]},
    "B": {"cases": ["b*"], "annotated": ["disc"]},
    "U": {"cases": ["u*"], "annotated": []},
}


@pytest.fixture
def world(nnunet_folders):
    rng = np.random.default_rng(0)
    cases = {f"{g}{i}": shapes(rng, 24) for g in "ab" for i in range(5)}
    cases |= {f"u{i}": (image, np.zeros_like(t)) for i, (image, t) in enumerate([shapes(rng, 24)] * 3)}
    for name in ("a", "b"):
        for case in cases:
            if case.startswith(name):
                image, target = cases[case]
                cases[case] = image, np.where(target == (1 if name == "a" else 2), target, 0).astype(np.int8)
    write_world(nnunet_folders, cases, SQUARE_DISC, SOURCES, batch_size=8)
    return nnunet_folders


def edit(file, **changes):
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(content))


def dataset_json(base, where="nnUNet_preprocessed"):
    return base / where / NAME / "dataset.json"


def results(base):
    return list((base / "nnUNet_results").rglob("*"))


def test_different_raw_and_preprocessed_tables_are_refused_before_anything_is_written(world):
    raw = dataset_json(world, "nnUNet_raw")
    raw.parent.mkdir()
    raw.write_text(dataset_json(world).read_text())
    make_trainer(world, ConditionalFiLMTrainer)
    edit(raw, sources=SOURCES | {"A": {"cases": ["a*"], "annotated": ["square", "disc"]}})
    before = results(world)
    with pytest.raises(
        SourceError, match=r"(?s)`sources` differs between raw and preprocessed.*conemos declare"
    ) as error:
        make_trainer(world, ConditionalFiLMTrainer, fold=1)
    assert str(raw) in str(error.value).replace("\n", " ")
    assert results(world) == before


def test_the_cascade_is_refused_in_a_sentence(world):
    file = world / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["cascade"] = {"inherits_from": CONFIGURATION, "previous_stage": "3d_lowres"}
    file.write_text(json.dumps(plans))
    with pytest.raises(NotImplementedError, match=r"does not train the cascade.*3d_fullres or 3d_lowres"):
        make_trainer(world, ConditionalFiLMTrainer, configuration="cascade")
    assert not results(world)


def test_a_case_in_no_source_is_refused_before_anything_is_written(world):
    edit(dataset_json(world), sources={k: v for k, v in SOURCES.items() if k != "U"})
    with pytest.raises(SourceError, match=r"3 case.s. in no source: u0, u1, u2"):
        make_trainer(world, ConditionalFiLMTrainer)
    assert not results(world)


def test_a_model_folder_of_other_labels_is_refused_with_both_lists(world):
    trainer = make_trainer(world, ConditionalFiLMTrainer)
    trainer.initialize()
    trainer.on_train_start()
    checkpoint = f"{trainer.output_folder}/checkpoint_final.pth"
    trainer.save_checkpoint(checkpoint)
    edit(dataset_json(world), labels={"background": 0, "disc": 1, "square": 2})
    with pytest.raises(SourceError, match=r"trained for other labels") as error:
        make_trainer(world, ConditionalFiLMTrainer, fold=1)
    assert "'square': 1" in str(error.value)
    assert "'square': 2" in str(error.value)
    (world / "nnUNet_results" / NAME / "ConditionalFiLMTrainer__nnUNetPlans__tiny" / "dataset.json").unlink()
    other = make_trainer(world, ConditionalFiLMTrainer, fold=1)
    with pytest.raises(SourceError, match="checkpoint_final"):
        other.load_checkpoint(checkpoint)


def test_default_split_is_stratified_and_unlabelled_cases_only_train(world):
    train, validation = make_trainer(world, ConditionalFiLMTrainer).do_split()
    assert sorted(case[0] for case in validation) == ["a", "b"]
    assert {case for case in train if case.startswith("u")} == {"u0", "u1", "u2"}


def test_an_existing_split_wins_and_only_its_unlabelled_validation_cases_move(world, capsys):
    split = world / "nnUNet_preprocessed" / NAME / "splits_final.json"
    split.write_text(json.dumps([{"train": ["a0", "b0", "u0"], "val": ["a1", "u1"]}]))
    train, validation = make_trainer(world, ConditionalFiLMTrainer).do_split()
    assert validation == ["a1"]
    assert train == ["a0", "b0", "u0", "u1"]
    assert "training only: u1" in capsys.readouterr().out
    split.write_text(json.dumps([{"train": ["a0"], "val": ["u1"]}]))
    with pytest.raises(SourceError, match=r"no annotated validation case.*into 'val' of"):
        make_trainer(world, ConditionalFiLMTrainer).do_split()
    split.write_text(json.dumps([{"train": ["u0"], "val": ["a0"]}]))
    with pytest.raises(SourceError, match=r"fold 0: no annotated training case.*into 'train' of"):
        make_trainer(world, ConditionalFiLMTrainer).do_split()


def test_a_fold_that_the_split_lacks_is_refused(world):
    """nnU-Net would draw one at random, with the test cases of a setting in it."""
    split = world / "nnUNet_preprocessed" / NAME / "splits_final.json"
    split.write_text(json.dumps([{"train": ["a0", "b0"], "val": ["a1"]}]))
    with pytest.raises(SourceError, match=r"fold 1: expected one of the 1 of .*splits_final.json, counted from 0"):
        make_trainer(world, ConditionalFiLMTrainer, fold=1).do_split()


def test_fold_all_trains_and_validates_on_everything_annotated(world):
    train, validation = make_trainer(world, ConditionalFiLMTrainer, fold="all").do_split()
    assert len(train) == 13
    assert len(validation) == 10


def test_the_stated_share_of_samples_holds_the_queried_label(world):
    """Two thirds are centred on it, so more than half must show it; without forcing, far fewer do."""
    trainer = make_trainer(world, ConditionalFiLMTrainer)
    trainer.initialize()
    trainer.configuration_manager.configuration["patch_size"] = [8, 8]
    assert trainer.oversample_foreground_percent == 0.67

    def share():
        np.random.seed(0)
        loader, _ = trainer.get_dataloaders()
        holds, queried = [], []
        for _ in range(40):
            query, truth = trainer.to_query_and_truth(next(loader))
            holds.append(truth[0].onehot().flatten(1).any(1))
            queried.append(query.labels)
        assert set(torch.cat(queried).flatten().tolist()) == {1, 2}
        return torch.cat(holds).float().mean().item()

    with_forcing = share()
    trainer.oversample_foreground_percent = 0.0
    without = share()
    assert with_forcing > 0.6
    assert without < with_forcing - 0.2


def test_validation_queries_one_label_per_sample_whatever_k_is(nnunet_folders):
    rng = np.random.default_rng(0)
    labels = {"background": 0, **{f"l{k}": k for k in range(1, 13)}}
    write_world(nnunet_folders, {f"c{i}": shapes(rng, 16) for i in range(6)}, labels, None, batch_size=2)
    trainer = make_trainer(nnunet_folders, ConditionalFiLMTrainer)
    trainer.initialize()
    _, validation = trainer.get_dataloaders()
    queried = []
    trainer.network.embed.register_forward_hook(lambda _m, inputs, _o: queried.append(inputs[0].shape[0]))
    trainer.network.eval()
    counts = trainer.validation_step(next(validation))
    assert queried == [2]
    assert counts["tp_hard"].shape == (12,)


def epoch_outputs(**counts):
    zeros = {"tp_hard": np.zeros(2), "fp_hard": np.zeros(2), "fn_hard": np.zeros(2)}
    return [{"loss": np.array(0.5), **zeros, **{k: np.array(v, dtype=float) for k, v in counts.items()}}]


def test_an_epoch_that_counts_nothing_repeats_the_last_value(world):
    trainer = make_trainer(world, ConditionalFiLMTrainer)
    trainer.on_validation_epoch_end(epoch_outputs())
    assert trainer.logger.get_value("ema_fg_dice", step=-1) == 0
    trainer.current_epoch = 1
    trainer.on_validation_epoch_end(epoch_outputs(tp_hard=[8, 0], fn_hard=[4, 0]))
    value = trainer.logger.get_value("mean_fg_dice", step=-1)
    assert value == pytest.approx(0.8), "labels without counts are left out"
    trainer.current_epoch = 2
    trainer.on_validation_epoch_end(epoch_outputs())
    assert trainer.logger.get_value("mean_fg_dice", step=-1) == value
    assert np.isfinite(trainer.logger.get_value("ema_fg_dice", step=-1))


def test_unannotated_values_are_logged_once_and_teach_nothing(nnunet_folders, capsys):
    rng = np.random.default_rng(0)
    cases = {f"a{i}": shapes(rng, 16) for i in range(6)}  # discs are drawn in, but only squares are annotated
    write_world(nnunet_folders, cases, SQUARE_DISC, {"A": {"cases": ["*"], "annotated": ["square"]}})
    trainer = make_trainer(nnunet_folders, ConditionalFiLMTrainer)
    train, _ = trainer.get_tr_and_val_datasets()
    assert capsys.readouterr().out.count("were not annotated are left out") == 1
    assert not any(i.endswith("::2::one") for i in train.identifiers)


def test_settings_are_inherited_by_name_and_checked(world):
    class Longer(ConditionalFiLMTrainer):
        settings = {"num_epochs": 7}  # noqa: RUF012

    class Wrong(ConditionalFiLMTrainer):
        settings = {"number_of_epochs": 7}  # noqa: RUF012

    longer = make_trainer(world, Longer)
    assert longer.num_epochs == 7
    assert longer.probabilistic_oversampling
    with pytest.raises(AttributeError, match="number_of_epochs"):
        make_trainer(world, Wrong)


def test_inference_facts_are_written_into_the_plans(world):
    trainer = make_trainer(world, ConditionalFiLMTrainer)
    assert trainer.plans_manager.plans["conemos"] == {
        "options_recorded": True,
        "labels": ["square", "disc"],
        "has_regions": False,
        "untaught": [],
        "groups": [["disc"], ["square"]],
        "modalities": [],
        "only_modality": None,
    }


def test_labels_that_nobody_annotated_are_logged_and_kept_out_of_prediction(world, capsys):
    edit(dataset_json(world), labels=SQUARE_DISC | {"ring": 3})
    trainer = make_trainer(world, ConditionalFiLMTrainer)
    assert trainer.plans_manager.plans["conemos"]["untaught"] == ["ring"]
    trainer.get_tr_and_val_datasets()
    assert "No training case of this fold is annotated for ring" in capsys.readouterr().out


def test_missing_preprocessed_data_says_what_to_run(world):
    file = world / "nnUNet_preprocessed" / NAME / "nnUNetPlans.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["other"] = {"inherits_from": CONFIGURATION, "data_identifier": "nowhere"}
    file.write_text(json.dumps(plans))
    with pytest.raises(FileNotFoundError, match="nnUNetv2_preprocess"):
        make_trainer(world, ConditionalFiLMTrainer, configuration="other")
