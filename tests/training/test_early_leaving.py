"""The bounds of the final validation: with them, the maps of the validation cases are the same, and rows are saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from leaving import LABELS, REGIONS, choose_bounds, fine_rows, moved_trainer, predicted
from models import make_model
from pools import pools_of_threads
from raw_worlds import read_nifti

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.methods import ConditionalFiLMTrainer, LabelSetFiLMTrainer
from nnunetv2_conemos.networks.early_leaving import BOUNDS
from nnunetv2_conemos.networks.heads import ABSENT
from nnunetv2_conemos.training.early_leaving import MARGIN, computed_from, labels_in_tiles

WORLDS = [
    {"dim": 2},
    {"dim": 3, "mirroring": False, "last_layers": 4},
    {"dim": 2, "labels": REGIONS, "last_layers": 4},
    {"dim": 3, "mirroring": False, "spacing": 0.6},
    {"dim": 2, "mirroring": False, "trainer": LabelSetFiLMTrainer, "one_by_one": True},
]


@pytest.fixture(autouse=True)
def trained_levels(monkeypatch):
    """These networks have two levels, and nnU-Net does not train the coarsest."""
    monkeypatch.setattr("nnunetv2_conemos.training.early_leaving.MIN_WEIGHT", -1)


def written(trainer, where):
    return {file.name: read_nifti(file) for file in sorted((Path(trainer.output_folder) / where).glob("*.nii.gz"))}


def scarce(trainer, share=0.0005):
    """Shift the logits of a network without training until it finds each label in a `share` of the voxels."""
    network, number = trainer.leaving, len(trainer.table.labels)
    labels = np.stack([logits[-number:] for logits in predicted(trainer).values()], 1)
    highest = torch.from_numpy(np.quantile(labels.reshape(number, -1), 1 - share, axis=1)).float()
    film = network.decoder.seg_layers[-1].film.project
    with torch.no_grad():
        codes = network.embed(torch.eye(number))
        beta = film(codes)[:, film.out_features // 2 :]
        target = beta[:, :1].flatten() if beta.shape[1] == 1 else beta.diagonal()
        film.bias[film.out_features // 2 :] = 0
        film.weight[film.out_features // 2 :] = torch.linalg.pinv(codes) @ (target - highest)
    return trainer


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_predicted_again_with_bounds_the_written_maps_are_the_same(nnunet_folders, world):
    trainer = scarce(moved_trainer(nnunet_folders, **world))
    exact, every = fine_rows(trainer.network, lambda: choose_bounds(trainer))
    trainer.leaving.leave_early()
    skipping, rows = fine_rows(trainer.network, lambda: predicted(trainer, "skipping"))
    before, after = written(trainer, "validation"), written(trainer, "skipping")
    assert before.keys() == after.keys() == {"c3.nii.gz", "c4.nii.gz"}
    assert all((before[case] == after[case]).all() for case in before)
    assert any(label_map.any() for label_map in before.values()), "something was found"
    assert rows < every, "some labels left"
    assert any((skipping[case] == ABSENT).any() or (skipping[case] < exact[case] - 1).any() for case in exact)


def test_bounds_are_kept_with_the_weights_that_were_validated(nnunet_folders, capsys):
    trainer = scarce(moved_trainer(nnunet_folders, mirroring=False))
    files = {name: Path(trainer.output_folder) / f"checkpoint_{name}.pth" for name in ("final", "best")}
    for file in files.values():
        trainer.save_checkpoint(str(file))

    def bounds(name):
        return torch.load(files[name], weights_only=False)["network_weights"].get(BOUNDS)

    choose_bounds(trainer)
    chosen = trainer.leaving.absence_bounds.clone()
    assert "bounds chosen on 2 validation cases" in capsys.readouterr().out
    assert torch.equal(bounds("final"), chosen)
    assert bounds("best") is None
    trainer.load_checkpoint(str(files["best"]))  # as --val_best does
    assert not trainer.leaving.absence_bounds.isfinite().any()
    choose_bounds(trainer)
    assert torch.equal(bounds("best"), chosen)
    trainer.load_checkpoint(str(files["final"]))  # as --c of a training that goes on
    assert torch.equal(trainer.leaving.absence_bounds, chosen)
    trainer.on_train_start()
    assert not trainer.leaving.absence_bounds.isfinite().any(), "they do not hold for other weights"


def test_labels_found_in_no_validation_case_and_levels_without_training_never_leave(nnunet_folders, monkeypatch):
    trainer = scarce(moved_trainer(nnunet_folders, mirroring=False))
    trainer.leaving.output_labels = (2, 4)
    choose_bounds(trainer)
    found = set(np.unique(list(written(trainer, "validation").values()))) - {0}
    assert 0 < len(found) <= 2
    assert trainer.leaving.absence_bounds[0].isfinite().tolist() == [label in found for label in range(1, 6)]
    monkeypatch.undo()
    choose_bounds(trainer)
    assert not trainer.leaving.absence_bounds.isfinite().any()


def test_validation_is_left_alone_where_no_label_can_leave(nnunet_folders, monkeypatch):
    called = []
    base = "nnunetv2_conemos.training.trainer.PartialLabelTrainer.perform_actual_validation"
    monkeypatch.setattr(base, lambda self, probabilities: called.append(self.leaving.maxima))
    trainer = moved_trainer(nnunet_folders)
    trainer.enable_deep_supervision = False
    trainer.perform_actual_validation()
    moved_trainer(nnunet_folders, trainer=LabelSetFiLMTrainer).perform_actual_validation()
    moved_trainer(nnunet_folders, last_layers=2).perform_actual_validation()  # the coarse stages are shared
    assert called == [None, None, None]


def test_training_with_the_variable_is_refused(nnunet_folders, monkeypatch):
    monkeypatch.setenv("CONEMOS_SKIP_ABSENT", "1")
    with pytest.raises(ValueError, match="CONEMOS_SKIP_ABSENT is set"):
        moved_trainer(nnunet_folders, trainer=ConditionalFiLMTrainer)


def test_a_bound_is_the_lowest_maximum_over_the_tiles_that_a_label_was_found_in(nnunet_folders):
    trainer = scarce(moved_trainer(nnunet_folders))
    with trainer.watched() as cases:
        predicted(trainer)
    lowest = np.full(len(trainer.table.labels), np.inf)
    for name, case in cases.items():
        label_map, number = trainer.written_map(name, case), 0
        for y in (0, 4):  # one slice of 20x32 in tiles of 16x16; four passes each
            for x in (0, 8, 16):
                calls = torch.stack(case.maxima[number : number + 4])[:, 0].amin(0).numpy()
                number += 4
                for label in set(label_map[0, y : y + 16, x : x + 16].astype(int).flat) - {0}:
                    lowest[label - 1] = min(lowest[label - 1], calls[label - 1])
        assert number == len(case.maxima)
    expected = np.where(np.isfinite(lowest), lowest - MARGIN, -np.inf)
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(trainer.chosen_bounds(cases)[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("written", "predicted"), [(10, 10), (7, 20), (20, 7), (1, 3)])
def test_every_voxel_that_interpolation_draws_from_a_tile_is_counted(written, predicted):
    """Compared with the places where nnU-Net's linear interpolation of a spike is not 0."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    for start in range(predicted):
        spike = np.zeros((1, predicted, 4, 4))
        spike[:, start] = 1
        spread = resample_data_or_seg_to_shape(spike, [written, 4, 4], [1.0] * 3, [predicted / written, 1, 1], order=1)
        touched = np.flatnonzero(np.abs(np.asarray(spread)[0, :, 1, 1]) > 1e-6)
        tile = computed_from(written, predicted, slice(start, start + 1))
        assert set(touched) <= set(range(written)[tile])


def test_tiles_that_reach_beyond_a_small_image():
    labels = LabelSpace.from_dataset_json({"labels": LABELS})
    label_map = np.zeros((4, 4, 4), np.uint8)
    label_map[3, 3, 3] = 5
    boxes = [(slice(-2, 6),) * 3, (slice(0, 3),) * 3]
    assert labels_in_tiles(label_map, (4, 4, 4), boxes, labels).tolist() == [[False] * 4 + [True], [False] * 5]


@pytest.mark.parametrize("fold", [0, "all"])
def test_nnunets_own_final_validation_chooses_the_bounds(preprocessed_phantom, monkeypatch, capsys, fold):
    pools_of_threads(monkeypatch)  # it exports in processes of their own
    model = make_model(preprocessed_phantom)
    arguments = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)["init_args"]
    trainer = ConditionalFiLMTrainer(
        **arguments
        | {"plans": arguments["plans"] | {"continue_training": True}, "fold": fold, "device": torch.device("cpu")}
    )
    trainer.initialize()
    trainer.perform_actual_validation()
    assert (Path(trainer.output_folder) / "validation" / "summary.json").is_file()
    cases = 9 if fold == "all" else len(trainer.do_split()[1])
    assert f"bounds chosen on {cases} validation cases" in capsys.readouterr().out
