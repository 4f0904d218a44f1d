"""A few labels at a time give the label map of nnU-Net, voxel by voxel."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import LABELS, REGIONS
from every_trainer import TRAINERS
from predictors import TORCH, both_predictors, labels_of, preprocessed, raw_image, stock_map, streamed_map
from raw_worlds import read_nifti

from nnunetv2_conemos.errors import FileError, ShortOfMemoryError
from nnunetv2_conemos.inference import memory, streaming
from nnunetv2_conemos.inference.background import Background
from nnunetv2_conemos.inference.streaming import LABELS_AT_ONCE, StreamingPredictor
from nnunetv2_conemos.locks import lock_file_of, locked
from nnunetv2_conemos.methods import LabelSetFiLMTrainer, MultiTalentTrainer
from nnunetv2_conemos.methods.conemos import ConditionalUNet

TEN = labels_of(10)
SLICES = raw_image((5, 20, 18))
GRIDS: dict[str, dict[str, Any]] = {
    "same grid": {"labels": TEN},
    "resampled": {"labels": TEN, "spacing": 1.3},
    "resampled by torch": {"labels": labels_of(9), "spacing": 1.3, "resample": TORCH},
    "transposed": {"labels": TEN, "spacing": 0.9, "transpose": (2, 0, 1)},
    "mirrored": {"labels": TEN, "mirrored": True, "dim": 2},
    "three folds": {"labels": TEN, "folds": 3},
    "slices": {"labels": TEN, "dim": 2, "spacing": 1.2, "transpose": (1, 0, 2)},
    "regions": {"labels": REGIONS, "spacing": 1.3, "folds": 2, "seed": 3},
    "regions in slices": {"labels": REGIONS, "dim": 2, "mirrored": True},
    "more than 255 labels": {"labels": labels_of(300), "trainer": MultiTalentTrainer, "dim": 2},
}


@pytest.mark.parametrize("name", GRIDS)
def test_the_label_map_is_that_of_nnunet(name: str):
    stock, ours = both_predictors(**GRIDS[name])
    image = raw_image() if stock.configuration_manager.patch_size[2:] else SLICES
    expected = stock_map(stock, image)
    assert len(np.unique(expected)) > 2
    found = streamed_map(ours, image)
    assert found.dtype == expected.dtype
    assert (found == expected).all()
    at_once = 128 if "trainer" in GRIDS[name] else 4 if len(GRIDS[name]["labels"]) > 4 else 1
    assert (streamed_map(ours, image, at_once, workers=2) == expected).all(), "in threads, and in other chunks"


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda t: t.__name__)
@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_every_method_gives_the_same_map_in_chunks(trainer: type, labels: dict):
    if labels is REGIONS and not trainer.method.regions:
        pytest.skip("labels of this method exclude each other")
    stock, ours = both_predictors(labels, trainer, dim=2)
    image = SLICES
    expected = stock_map(stock, image)
    for at_once in (None, 2):
        assert (streamed_map(ours, image, at_once) == expected).all()
    some: Any = (1, 3)
    stock.network.output_labels = ours.network.output_labels = some
    assert (streamed_map(ours, image, 1) == stock_map(stock, image)).all()
    assert ours.network.output_labels == some, "as it was before"


def test_labels_of_a_set_queried_one_by_one_are_passes_of_their_own():
    (_, together), (stock, alone) = (
        both_predictors(TEN, LabelSetFiLMTrainer, dim=2, one_by_one=one_by_one) for one_by_one in (False, True)
    )
    assert [len(chunk) for chunk in together.chunks()] == [10]
    assert [len(chunk) for chunk in alone.chunks()] == [8, 2]
    image = SLICES
    assert (streamed_map(alone, image) == stock_map(stock, image)).all()


def test_never_more_maps_than_a_chunk_and_one_pass_per_label(monkeypatch: pytest.MonkeyPatch):
    assert LABELS_AT_ONCE % ConditionalUNet.labels_at_once == 0, "the network computes the same batches as in nnU-Net"
    _, ours = both_predictors(labels_of(20), dim=2)
    passes, widths = [], []
    conditioned, window = ConditionalUNet.conditioned, StreamingPredictor.predict_sliding_window_return_logits

    def counted(self: Any, state: Any, queried: torch.Tensor) -> Any:
        passes.extend((queried.int().argmax(1) + 1).tolist())
        return conditioned(self, state, queried)

    def measured(self: Any, image: torch.Tensor) -> Any:
        logits = window(self, image)
        widths.append(len(logits))
        return logits

    monkeypatch.setattr(ConditionalUNet, "conditioned", counted)
    monkeypatch.setattr(StreamingPredictor, "predict_sliding_window_return_logits", measured)
    streamed_map(ours, raw_image((4, 18, 18)))
    assert widths == [8, 8, 4]
    assert passes == list(range(1, 21)), "one slice of one tile: every label once"


def test_files_are_written_whole_and_one_process_writes_a_case(tmp_path: Path):
    _, ours = both_predictors(LABELS, dim=2)
    image, file = SLICES, tmp_path / "case.nii.gz"
    properties = {"sitk_stuff": {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())}}
    case = preprocessed(ours, image, str(tmp_path / "case"))
    case["data_properties"] |= properties
    left = tmp_path / f".case.nii.gz.{'0' * 16}"
    left.mkdir()  # of a process that was killed
    with locked(lock_file_of(file), file), pytest.MonkeyPatch.context() as patched:
        patched.setattr("nnunetv2_conemos.locks._held", {})
        with pytest.raises(FileError, match="is being written by"):
            ours.predict_from_data_iterator([case], False, 1)
    assert ours.predict_from_data_iterator([case, case], False, 1) == [None, None]
    assert (read_nifti(file) == streamed_map(ours, image)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["case.nii.gz"]


def test_one_job_waits_at_most_and_errors_are_raised():
    release, begun = threading.Event(), []

    def job(number: int) -> int:
        begun.append(number)
        assert release.wait(10)
        return number

    with Background(2) as background:
        first = background.run(job, 1)
        threading.Timer(0.2, release.set).start()
        second = background.run(job, 2)
        assert first.done(), "the second began when the first had ended"
        assert second.result() == 2
        background.run(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            background.run(job, 3)
    assert begun == [1, 2]


def test_too_little_memory_is_said_before_maps_are_made(monkeypatch: pytest.MonkeyPatch):
    _, ours = both_predictors(TEN)
    case = preprocessed(ours, raw_image())
    voxels = 17 * 18 * 15
    monkeypatch.setattr(memory, "available_memory", lambda: 5 * voxels * memory.BYTES)
    with pytest.raises(ShortOfMemoryError, match=r"8 labels x 17 x 18 x 15 voxels x 8 bytes.*--labels-at-once to 5 or"):
        ours.predict_from_data_iterator([case], False, 0)
    ours.labels_at_once = 5
    ours.predict_from_data_iterator([case], False, 0)
    monkeypatch.setattr(memory, "available_memory", lambda: voxels)
    ours.labels_at_once = 1
    with pytest.raises(ShortOfMemoryError, match="Take a machine with more memory"):
        ours.predict_from_data_iterator([case], False, 0)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_explained(monkeypatch: pytest.MonkeyPatch, error: Exception):
    _, ours = both_predictors(LABELS, dim=2)

    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(ours, "predict_logits_from_preprocessed_data", fail)
    with pytest.raises(ShortOfMemoryError, match=r"case 'array': 3 label\(s\) at once .* Set --labels-at-once to 2"):
        ours.predict_from_data_iterator([preprocessed(ours, SLICES)], False, 0)
    assert isinstance(ours.network, ConditionalUNet), "as before"


def test_other_errors_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    _, ours = both_predictors(LABELS, dim=2)
    monkeypatch.setattr(streaming, "write_prediction", None)
    monkeypatch.setattr(ours, "_resampled", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ours.predict_from_data_iterator([preprocessed(ours, SLICES)], False, 1)


def test_memory_that_is_there_is_known():
    there = memory.available_memory()
    assert there is None or 2**26 < there < 2**46
