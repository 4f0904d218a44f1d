"""`labels` and `regions_class_order`: nnU-Net is asked first, then what it accepts although its maps come out wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_conemos.datasets.dataset_json import find_problems
from nnunetv2_conemos.datasets.label_maps import signatures
from nnunetv2_conemos.datasets.label_rules import best_order, check_labels, never_written
from nnunetv2_conemos.errors import SourceError

NESTED = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "centre": 3}
PLAIN = {"background": 0, "a": 1, "b": 2}


def entries(labels: Any, order: Any = None) -> dict[str, Any]:
    return {"labels": labels, **({} if order is None else {"regions_class_order": order})}


@pytest.mark.parametrize(
    "content",
    [
        entries(PLAIN),
        entries({**PLAIN, "b": [2]}),
        entries({**PLAIN, "ignore": 3}),
        entries({**PLAIN, "ignore": None}),
        entries(NESTED, [1, 2, 3]),
        entries({**NESTED, "ignore": 4}, [1, 2, 3]),
        entries({"background": 0, "x": [1, 2], "y": [2, 3]}, [1, 3]),
    ],
)
def test_what_nnunet_can_train_on_passes(content: dict[str, Any]):
    assert check_labels(content).names


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": 1, "b": 2}, 'expected "background": 0, which nnU-Net requires'),
        ({**PLAIN, "background": [0]}, "'background': expected 0, found \\[0\\]"),
        ({**PLAIN, "background": 3}, "'background': expected 0, found 3"),
        ({**PLAIN, "b": []}, "'b': expected an integer .*found \\[\\]"),
        ({**PLAIN, "b": "2"}, "'b': expected an integer .*found '2'"),
        ({**PLAIN, "b": True}, "'b': expected an integer .*found True"),
        ({**PLAIN, "b": [[2]]}, "'b': expected an integer"),
        ({**PLAIN, "b": None}, "'b': expected an integer"),
        ({**PLAIN, "b": 0}, "'b': expected values other than 0"),
        ({**PLAIN, "b": 1}, "found 1 for a and b"),
        ({**PLAIN, "b": 4}, "expected consecutive label ids, 1 to 2, found 1, 4"),
        ({**PLAIN, "b": [2, 2**40]}, "'b': expected an integer from 0 to 65535"),
        ({**PLAIN, "ignore": [3]}, "'ignore': expected one integer, found \\[3\\]"),
        ({**PLAIN, "ignore": 0}, "'ignore': expected the highest value, found 0"),
        ({**PLAIN, "ignore": 2}, "'ignore': expected a value of its own"),
        ({**PLAIN, "ignore": 9}, "'ignore': expected 3, the value after all others, found 9"),
        ({"0": "background", "1": "liver"}, "found value -> name for 0, 1"),
        ({"background": 0}, "at least one label besides background"),
        ({**PLAIN, "c\n": 3}, "expected names in one line"),
        ({}, "expected an object"),
        (["a"], "expected an object"),
    ],
)
def test_labels_that_cannot_be_trained_say_key_found_and_expected(labels: Any, message: str):
    with pytest.raises(SourceError, match=f"`labels`.*{message}"):
        check_labels(entries(labels))


@pytest.mark.parametrize(
    "order", [None, [1, 2], "123", ["1", "2", "3"], [1.0, 2.0, 3.0], [3, 2, 1], [2, 2, 3], [1, 2, 9]]
)
def test_an_order_that_loses_a_region_is_refused_with_the_right_one(order: Any):
    with pytest.raises(SourceError, match=r'order whole, core, centre, and "regions_class_order": \[1, 2, 3\]'):
        check_labels(entries(NESTED, order))


def test_the_order_of_the_labels_matters_too():
    upside_down = {"background": 0, "centre": 3, "core": [2, 3], "whole": [1, 2, 3]}
    with pytest.raises(SourceError, match=r"no region is written over another one.*order whole, core, centre"):
        check_labels(entries(upside_down, [3, 2, 1]))


def test_regions_that_overlap_by_halves_cannot_be_written_by_any_order():
    labels = check_labels(entries({"background": 0, "x": [1, 2], "y": [2, 3]}, [1, 3]))
    assert never_written(labels) == ["'x' and 'y'"]
    assert never_written(check_labels(entries(NESTED, [1, 2, 3]))) == []


def test_a_merge_may_have_gaps():
    gaps = {"background": 0, "a": 1, "b": 4, "ignore": 9}
    assert check_labels(entries(gaps), consecutive=False).values == ((1,), (4,))
    with pytest.raises(SourceError, match="ignore"):
        check_labels(entries({**gaps, "ignore": 4}), consecutive=False)


VALUES = st.one_of(st.integers(-1, 5), st.lists(st.integers(0, 5), max_size=3), st.sampled_from([None, "1", 1.5, True]))


@given(
    st.dictionaries(st.sampled_from(["background", "ignore", "a", "b", "c"]), VALUES),
    st.one_of(st.none(), st.lists(st.integers(0, 5), max_size=3)),
)
def test_what_passes_is_accepted_by_nnunet_and_comes_back_from_a_perfect_prediction(labels: Any, order: Any):
    content = entries({"background": 0, **labels}, order)
    if find_problems({**content, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}):
        return
    space = check_labels(content)
    manager = LabelManager(content["labels"], order)
    assert np.all(np.ediff1d([*manager.all_labels, *([manager.ignore_label] if manager.has_ignore_label else [])]) == 1)
    if manager.has_regions and not never_written(space):
        truth = np.arange(1 + max(manager.all_labels))[None, None]
        perfect = np.stack([np.isin(truth, values) for values in space.values]).astype(float)
        written = manager.convert_probabilities_to_segmentation(perfect)
        meaning = signatures(space.names, space.values)
        assert [meaning[v] for v in written.flat] == [meaning[v] for v in truth.flat]


def test_the_best_order_writes_large_regions_first():
    labels = check_labels(entries(NESTED, [1, 2, 3]))
    assert best_order(labels) == (["whole", "core", "centre"], [1, 2, 3])


RAW = {"channel_names": {"0": "CT"}, "labels": PLAIN, "file_ending": ".nii.gz"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {"1": "CT"}}, '`channel_names`: expected the keys "0"'),
        ({"channel_names": {"1": "T2", "0": "T1"}}, "in this order"),
        ({"channel_names": {}}, "found none"),
        ({"channel_names": {"0": ""}}, "expected a name for channel 0"),
        ({"file_ending": ""}, "`file_ending`: expected one that nnU-Net reads"),
        ({"file_ending": "nii.gz"}, "found 'nii.gz'"),
        ({"overwrite_image_reader_writer": ["x"]}, "overwrite_image_reader_writer"),
        ({"overwrite_image_reader_writer": "SimpleITKReader"}, "expected one of NaturalImage2DIO, SimpleITKIO"),
        ({"overwrite_image_reader_writer": "np"}, "expected one of NaturalImage2DIO, SimpleITKIO"),
        ({"dataset": {"a": {"images": ["a\0b"], "label": "a"}}}, "expected the name of a file"),
        ({"dataset": None}, "dataset"),
    ],
)
def test_the_other_keys_are_judged_as_well(change: dict[str, Any], message: str):
    (problem,) = find_problems(RAW | change)
    assert message in problem
    assert find_problems(RAW) == []
