"""What this package leans on in nnU-Net, pinned by what it does. A failure says which file to re-read."""

import inspect

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from worlds import make_trainer, shapes, write_world

from nnunetv2_conemos.methods import CMERTrainer, ConditionalFiLMTrainer
from nnunetv2_conemos.records import Query, Truth
from nnunetv2_conemos.training.trainer import PartialLabelTrainer

LABELS = {"background": 0, "square": 1, "disc": 2}


def source(function):
    return inspect.getsource(function)


def test_trainer_hooks_still_have_the_parameters_that_are_overridden():
    """Re-read training/trainer.py: nnU-Net reads parameter names from the signatures."""
    for name in ("__init__", "build_network_architecture"):
        theirs = inspect.signature(getattr(nnUNetTrainer, name)).parameters
        ours = inspect.signature(getattr(PartialLabelTrainer, name)).parameters
        assert list(theirs) == [p for p in ours if p != "cls"], name
    for name in (
        "_build_loss",
        "do_split",
        "get_tr_and_val_datasets",
        "train_step",
        "validation_step",
        "on_validation_epoch_end",
        "perform_actual_validation",
        "load_checkpoint",
        "_set_batch_size_and_oversample",
    ):
        assert callable(getattr(nnUNetTrainer, name)), name


def test_the_final_validation_opens_and_predicts_cases_as_it_did():
    """Re-read training/early_leaving.py, which notes what is predicted between two cases, tile by tile."""
    code = source(nnUNetTrainer.perform_actual_validation)
    assert "dataset_val = self.dataset_class(self.preprocessed_dataset_folder, val_keys," in code
    assert code.index("dataset_val.load_case(k)") < code.index("predictor.predict_sliding_window_return_logits(data)")
    assert "tile_step_size=0.5, use_gaussian=True, use_mirroring=True" in code
    assert source(nnUNetPredictor._internal_maybe_mirror_and_predict).count("self.network(") == 2


def test_hooks_of_whole_slice_training_are_where_they_were():
    """Re-read cmer/slice_trainer.py: the patch is drawn as it is, augmented as in validation, never compiled."""
    theirs, ours = (
        inspect.signature(trainer.get_training_transforms).parameters for trainer in (nnUNetTrainer, CMERTrainer)
    )
    assert list(theirs) == list(ours)
    assert list(inspect.signature(nnUNetTrainer.get_validation_transforms).parameters) == [
        "deep_supervision_scales", "is_cascaded", "foreground_labels", "regions", "ignore_label"
    ]  # fmt: skip
    code = source(nnUNetTrainer.get_dataloaders)
    assert "self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()" in code
    assert "self.get_training_transforms(" in code
    assert "if self._do_i_compile():" in source(nnUNetTrainer.initialize)
    assert "self.on_train_end()" in source(nnUNetTrainer.run_training)
    assert "checkpoint_best.pth" in source(nnUNetTrainer.on_epoch_end)
    assert 'self.save_checkpoint(join(self.output_folder, "checkpoint_final.pth"))' in source(
        nnUNetTrainer.on_train_end
    )


def test_train_step_only_moves_and_forwards_what_it_is_given(nnunet_folders):
    """Re-read PartialLabelTrainer.train_step: records travel because `.to` is all that nnU-Net calls on them."""
    rng = np.random.default_rng(0)
    write_world(nnunet_folders, {f"c{i}": shapes(rng, 16) for i in range(6)}, LABELS, None)
    trainer = make_trainer(nnunet_folders, nnUNetTrainer)

    class Network(nn.Linear):
        def forward(self, question):
            assert isinstance(question, Query)
            return [super().forward(question.image)]

    def loss(output, target):
        assert isinstance(target, list)
        assert isinstance(target[0], Truth)
        return output[0].sum()

    trainer.network, trainer.loss = Network(2, 1), loss
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.1)
    labels = torch.ones(1, 1, dtype=torch.long)
    truth = Truth(torch.zeros(1, 1, 2, dtype=torch.int16), labels, labels.bool(), None)
    assert "loss" in trainer.train_step({"data": Query(torch.ones(1, 1, 2), labels), "target": [truth]})


class Product(nn.Module):
    def forward(self, a, b):
        return a * b


def test_deep_supervision_wrapper_exposes_its_loss_and_zips_lists():
    wrapper = DeepSupervisionWrapper(nn.Identity(), [1.0, 0.5])
    wrapper.loss = Product()
    assert wrapper([2, 4], [10, 100]) == 2 * 10 + 0.5 * 4 * 100


def test_loader_draws_uniformly_from_identifiers_and_returns_them_as_keys():
    """Re-read training/sampling.py: identifiers rest on `np.random.choice(indices)` and `load_case(identifier)`."""
    assert "np.random.choice(self.indices, self.batch_size, replace=True, p=self.sampling_probabilities)" in source(
        DataLoader.get_indices
    )
    code = source(nnUNetDataLoader)
    assert "self.indices = data.identifiers" in code
    assert "self._data.load_case(i)" in code
    assert "crop_and_pad_nd(seg, bbox, -1, cast_cropped_to=np.int16)" in code, "training/annotated.py: sliced once"
    assert "'keys': selected_keys" in code
    assert "properties['class_locations']" in code
    assert "tuple([-1] + label_manager.all_labels)" in code


def test_locations_of_patch_centres_are_sampled_as_they_were():
    """Re-read training/annotated.py: it samples them again, in the order in which preprocessing stored them."""
    code = source(DefaultPreprocessor.run_case_npy)
    assert "self._sample_foreground_locations(seg, collect_for_this" in code
    target = np.array([[[[0, 1, 1], [2, 2, 0]]]], np.int16)
    sample = DefaultPreprocessor._sample_foreground_locations
    assert list(sample(target, [1, 2, [-1, 0, 1, 2]])) == list(sample(target, [1, 2, (-1, 0, 1, 2)]))
    for once, again in zip(*(sample(target, [1, 2]).values() for _ in range(2)), strict=True):
        assert np.array_equal(once, again)


def test_a_fold_notes_the_dataset_that_it_was_trained_on():
    """Re-read evaluation/provenance.py: `labels_of_training`."""
    code = source(nnUNetTrainer._save_debug_information)
    assert "dct[k] = str(getattr(self, k))" in code
    assert 'save_json(dct, join(self.output_folder, "debug.json"))' in code


def test_plans_reach_the_results_folder_and_prediction():
    """Re-read training/plans_facts.py and networks/spec.py: what inference must know travels in the plans."""
    assert "save_json(self.plans_manager.plans, join(self.output_folder_base, 'plans.json')" in source(nnUNetTrainer)
    code = source(nnUNetPredictor.initialize_from_trained_model_folder)
    assert "load_json(join(model_training_output_dir, 'plans.json'))" in code
    assert "trainer_class.build_network_architecture" in code


def test_prediction_in_chunks_finds_the_parts_that_it_calls():
    """Re-read inference/streaming.py: one predictor computes some labels, another file resamples and writes them."""
    assert "self.label_manager.num_segmentation_heads, *data.shape[1:]" in source(
        nnUNetPredictor._internal_predict_sliding_window_return_logits
    )
    assert "self.network.load_state_dict(params)" in source(nnUNetPredictor.predict_logits_from_preprocessed_data)
    for name in ("_internal_get_data_iterator_from_lists_of_filenames", "predict_from_data_iterator"):
        assert f"self.{name}(" in source(nnUNetPredictor.predict_from_files)
    exported = source(convert_predicted_logits_to_segmentation_with_correct_shape)
    assert "resampling_fn_probabilities(" in exported
    assert "np.uint8 if len(label_manager.foreground_labels) < 255 else np.uint16" in exported


def test_prediction_adds_mirrored_passes_in_place():
    """Re-read networks/base.py: the heads must have memory of their own."""
    assert "prediction += torch.flip(" in source(nnUNetPredictor._internal_maybe_mirror_and_predict)


def test_pretrained_weights_need_every_key_outside_the_segmentation_layers():
    """Re-read inference/adapt.py."""
    code = source(load_pretrained_weights)
    assert "'.seg_layers.'" in code
    assert "saved_model['network_weights']" in code


def test_argmax_of_a_zero_background_is_the_likeliest_label_above_one_half():
    logits = torch.tensor([[0.0, 0.0, 0.0], [-1.0, 2.0, 1.0], [-2.0, 1.0, 3.0]])[:, :, None]
    assert LabelManager(LABELS, None).convert_logits_to_segmentation(logits).flatten().tolist() == [0, 1, 2]


def test_validation_metrics_of_unannotated_labels_would_count_as_zero():
    """Re-read training/validation.py: nnU-Net scores a right organ as Dice 0 where it was not annotated."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics

    class Reader:
        def read_seg(self, file):
            return np.array([0, 1, 2 if file == "prediction" else 0]), {}

    metrics = compute_metrics("truth", "prediction", Reader(), [1, 2])["metrics"]
    assert metrics[1]["Dice"] == 1
    assert metrics[2]["Dice"] == 0


def test_nan_dice_would_never_recover():
    """Re-read on_validation_epoch_end: the logger's moving average keeps a NaN."""
    code = source(inspect.getmodule(nnUNetTrainer).MetaLogger.log)
    assert "* 0.9 + 0.1 * value" in code


@pytest.mark.parametrize("trainer", [ConditionalFiLMTrainer])
def test_lookup_signature_is_seen_as_the_new_one(trainer):
    assert "plans_manager" in inspect.signature(trainer.build_network_architecture).parameters
