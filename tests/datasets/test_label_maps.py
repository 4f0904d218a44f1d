"""Values as sets of labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.datasets.label_maps import (
    completion_table,
    label_entries,
    lookup,
    not_written,
    shown,
    signatures,
    union,
    visible_values,
)
from nnunetv2_conemos.errors import SourceError

ORGANS = LabelSpace.from_dataset_json({"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}})
NESTED = LabelSpace.from_dataset_json({"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "centre": 3}})


def test_a_hidden_label_becomes_background_and_ignore_stays():
    assert visible_values(ORGANS, ["spleen"]) == {0: 0, 1: 0, 2: 2, 3: 3}


@pytest.mark.parametrize(
    ("annotated", "expected"),
    [
        (["whole"], {0: 0, 1: 1, 2: 1, 3: 1}),
        (["whole", "core"], {0: 0, 1: 1, 2: 2, 3: 2}),
        (["core"], {0: 0, 1: 0, 2: 2, 3: 2}),
        (["centre"], {0: 0, 1: 0, 2: 0, 3: 3}),
        (["whole", "centre"], {0: 0, 1: 1, 2: 1, 3: 3}),
    ],
)
def test_a_hidden_subregion_becomes_the_region_around_it(annotated, expected):
    assert visible_values(NESTED, annotated) == expected


@given(st.sets(st.sampled_from(NESTED.names)))
def test_what_is_visible_depends_on_annotated_labels_alone_and_keeps_them(annotated):
    space = signatures(NESTED.names, NESTED.values)
    visible = visible_values(NESTED, annotated)
    for value, signature in space.items():
        assert space[visible[value]] & annotated == signature & annotated
        for other in space:
            if space[other] & annotated == signature & annotated:
                assert visible[other] == visible[value]


@given(st.sets(st.sampled_from(NESTED.names)), st.sampled_from(range(4)), st.sampled_from(range(4)))
def test_completion_never_changes_an_annotated_label(annotated, mine, predicted):
    space = signatures(NESTED.names, NESTED.values)
    table, left_open = completion_table(NESTED, annotated)
    result = table[mine, predicted]
    assert left_open[mine] == (not space[mine] & annotated and len(set(table[mine])) > 1)
    assert space[result] & annotated == space[mine] & annotated
    if space[predicted] & annotated == space[mine] & annotated:
        assert result == predicted, "a prediction that agrees with the annotator is taken as it is"


def test_completion_of_organs():
    table, left_open = completion_table(ORGANS, ["liver"])
    assert table[1, 2] == 1, "annotated liver stays"
    assert table[0, 2] == 2, "the missing spleen is filled in"
    assert table[0, 1] == 0, "a prediction of an annotated label is dropped"
    assert table[3].tolist() == [3] * 4, "ignored voxels stay ignored"
    assert left_open.tolist() == [True, False, True, False], "a stray spleen is as good as background"


def test_union_keeps_the_order_of_organs_and_separates_nested_values():
    a = {0: frozenset(), 1: frozenset({"liver"}), 2: frozenset({"liver", "tumour"})}
    b = {0: frozenset(), 1: frozenset({"spleen"}), 2: frozenset({"liver"})}
    names, values = union([a, b])
    assert names == ["liver", "tumour", "spleen"]
    assert set(values) == {frozenset({"liver"}), frozenset({"liver", "tumour"}), frozenset({"spleen"})}
    labels, order = label_entries(names, values)
    whole, inside = labels["liver"], labels["tumour"]
    assert isinstance(whole, list)
    assert inside in whole
    assert list(labels)[:2] == ["background", "liver"], "large regions come first, small ones are written over them"
    assert order[list(labels).index("tumour") - 1] == inside
    assert order[0] == next(v for v in whole if v != inside), "the region around it is written as its own value"


def test_a_space_that_lacks_a_label_says_nothing_about_it():
    """A tumour annotated without its liver lies in the liver, where every other dataset has it there."""
    nested = {1: frozenset({"liver"}), 2: frozenset({"liver", "tumour"})}
    names, values = union([nested, {1: frozenset({"tumour"})}])
    assert values == [frozenset({"liver"}), frozenset({"liver", "tumour"})]
    labels, order = label_entries(names, values)
    assert labels == {"background": 0, "liver": [1, 2], "tumour": 2}
    assert not_written(names, order, dict(enumerate(values, 1))) == []
    assert shown(frozenset({"tumour"}), {"tumour"}, {s: v for v, s in enumerate(values, 1)}) == 2
    halves = {1: frozenset({"whole", "left"}), 2: frozenset({"whole", "right"})}
    _, values = union([halves, {1: frozenset({"whole"})}])
    assert frozenset({"whole"}) in values, "left or right is not known there, so it keeps a value of its own"


def test_what_nnunet_cannot_write_is_found():
    """One dataset has the tumour in the liver, another outside."""
    names, values = union([{1: frozenset({"a"}), 2: frozenset({"a", "b"})}, {1: frozenset({"a"}), 2: frozenset({"b"})}])
    labels, order = label_entries(names, values)
    assert not_written(list(labels)[1:], order, dict(enumerate(values, 1))) == [frozenset({"a", "b"})]


def test_equal_regions_are_refused():
    with pytest.raises(SourceError, match="'organ' and 'same' are the same voxels everywhere"):
        label_entries(["organ", "same"], [frozenset({"organ", "same"})])


def test_labels_that_never_overlap_stay_labels():
    names, values = union([{1: frozenset({"b"}), 2: frozenset({"a"})}, {1: frozenset({"c"})}])
    assert label_entries(names, values) == ({"background": 0, "b": 1, "a": 2, "c": 3}, [])


def test_lookup_applies_a_mapping_to_a_map():
    assert lookup({0: 0, 2: 5})[np.array([[0, 2], [2, 0]])].tolist() == [[0, 5], [5, 0]]
