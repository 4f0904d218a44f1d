"""The running choice of the label is nnU-Net's over all maps at once."""

from __future__ import annotations

import numpy as np
import pytest
from architectures import REGIONS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from predictors import labels_of

from nnunetv2_conemos.inference.running_map import RunningMap

FEW = [-2.0, -1.0, 0.0, 0.0, 1.0, 2.0]  # so that many are equal
LOGITS = st.sampled_from([np.float16, np.float32]).flatmap(
    lambda kind: arrays(kind, (5, 7), elements=st.sampled_from(FEW) | st.floats(-30, 30, width=16))
)


def running(manager: LabelManager, logits: np.ndarray) -> np.ndarray:
    found = RunningMap(manager, logits.shape[1:])
    for label, channel in enumerate(logits, start=1):
        found.add(label, channel)
    return found.values


@given(LOGITS)
def test_labels_are_those_of_argmax_over_background_and_all_labels(logits: np.ndarray):
    manager = LabelManager(labels_of(5), None)
    heads = np.concatenate((np.zeros_like(logits[:1]), logits))
    assert (running(manager, logits) == manager.convert_logits_to_segmentation(heads)).all()


@given(LOGITS)
def test_regions_are_written_in_the_order_of_nnunet(logits: np.ndarray):
    manager = LabelManager(REGIONS, [1, 2, 3])
    assert (running(manager, logits[:3]) == manager.convert_logits_to_segmentation(logits[:3])).all()


@pytest.mark.parametrize(("number", "kind"), [(254, np.uint8), (255, np.uint16)])
def test_the_type_is_that_of_nnunet(number: int, kind: type):
    assert RunningMap(LabelManager(labels_of(number), None), (2, 2)).values.dtype == kind
