"""`conemos cams`: what a model of tags is sure of becomes a source of label maps."""

import numpy as np
import pytest

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.methods.cmer.annotate import annotated_json
from nnunetv2_conemos.methods.cmer.pseudo_labels import Annotation, distances, found_slices, pseudo_map

LABELS = {"background": 0, "oedema": 1, "core": 2}
SOURCES = {
    "ours": {"cases": ["m*"], "annotated": ["oedema", "core"]},
    "tags": {"cases": ["t*"], "annotated": [], "tagged": ["core", "oedema"], "modality": "MR", "dataset": "D"},
    "mixed": {"cases": ["x*"], "annotated": ["oedema"], "tagged": ["core"]},
}
TAGS = {"cases": {"t1": {"core": [1], "oedema": [0, 1]}, "x1": {"core": [0, 1]}}}


def annotation(labels=LABELS, sources=SOURCES, margin=0.1, thresholds=(0.5, 0.5), background=0.5, **more):
    dataset_json = {"labels": labels, "sources": sources, "tags": TAGS, "file_ending": ".nii.gz", **more}
    table = SourceTable.from_dataset_json(dataset_json, ["m1", "t1", "x1"])
    return Annotation(None, None, None, table, dataset_json, {}, np.array(thresholds), margin, background)


def softmax(*activations):
    """What nnU-Net saves of activations minus thresholds [K,*S] in label mode."""
    logits = np.stack([np.zeros_like(activations[0]), *(np.asarray(a) / 0.1 for a in activations)])
    powers = np.exp(logits)
    return (powers / powers.sum(0)).astype(np.float32)


def volume(*first_slice):
    """Two slices alike, [2,1,X]."""
    return np.tile(np.array(first_slice, dtype=float)[None, None], (2, 1, 1))


def test_distances_come_back_from_probabilities():
    oedema, core = volume(0.5, -0.5, 0.05), volume(-0.4, 0.3, 0.0)
    assert np.allclose(distances(softmax(oedema, core), False), np.stack([oedema, core]), atol=1e-4)
    sigmoid = 1 / (1 + np.exp(-oedema / 0.1))
    assert np.allclose(distances(sigmoid[None].astype(np.float32), True), oedema, atol=1e-3)


def test_sure_voxels_are_labelled_doubtful_ones_ignored_and_tags_have_the_last_word():
    oedema = volume(0.3, -0.3, 0.05, 0.3, -0.3, 0.2)
    core = volume(-0.3, 0.3, -0.3, 0.4, -0.05, 0.05)
    found = pseudo_map(annotation(), "t1", softmax(oedema, core), np.zeros((2, 1, 6), np.intp))
    assert found[1, 0].tolist() == [1, 2, 3, 2, 3, 1]
    assert found[0, 0].tolist() == [1, 0, 3, 1, 0, 1], "slice 0 is tagged as without core"


@pytest.mark.parametrize(("margin", "expected"), [(0.0, [1, 0]), (0.06, [3, 3]), (0.2, [3, 3])])
def test_the_margin_is_that_of_activations(margin, expected):
    oedema, core = volume(0.05, -0.05), volume(-0.4, -0.4)
    found = pseudo_map(annotation(margin=margin), "t1", softmax(oedema, core), np.zeros((2, 1, 2), np.intp))
    assert found[0, 0].tolist() == expected


def test_background_has_a_bound_of_its_own_below_a_high_threshold():
    """Activations 0.75, 0.5, 0.35 and 0.25 of labels whose thresholds are 0.8 and 0.3."""
    activation = np.array([0.75, 0.5, 0.35, 0.25])
    made = annotation(thresholds=(0.8, 0.3), background=0.3)
    assert made.sure_background == pytest.approx([-0.5, -0.1])
    found = (0.15, -0.8), (-0.3, 0.4)  # oedema, core: each is found somewhere in the slice
    high = volume(*activation - 0.8, *found[0]), volume(*np.full(4, -0.3), *found[1])
    made_of_high = pseudo_map(made, "t1", softmax(*high), np.zeros((2, 1, 6), int))
    assert made_of_high[1, 0].tolist() == [3, 3, 3, 0, 1, 2]
    low = volume(*np.full(4, -0.8), *found[0]), volume(*activation - 0.3, *found[1])
    made_of_low = pseudo_map(made, "t1", softmax(*low), np.zeros((2, 1, 6), int))
    assert made_of_low[1, 0].tolist() == [2, 2, 3, 3, 1, 2], "not below the threshold by the margin"


def test_what_is_drawn_stays_and_what_is_neither_drawn_nor_tagged_is_not_added():
    own = np.tile(np.array([1, 0, 1, 0], np.intp)[None, None], (2, 1, 1))
    oedema, core = volume(-0.4, 0.4, -0.4, 0.4), volume(0.4, 0.4, 0.0, 0.0)
    found = pseudo_map(annotation(), "x1", softmax(oedema, core), own)
    assert found[0, 0].tolist() == [1, 2, 1, 3]


def test_nothing_is_sure_in_a_slice_whose_tag_was_not_found():
    """Core is tagged in slice 1, but nowhere sure; oedema, which is found there, stays."""
    oedema, core = volume(0.3, -0.3, -0.3), volume(-0.4, -0.4, 0.05)
    found = pseudo_map(annotation(), "t1", softmax(oedema, core), np.zeros((2, 1, 3), np.intp))
    assert found[1, 0].tolist() == [1, 3, 3]
    assert found[0, 0].tolist() == [1, 0, 0], "slice 0 is tagged as without core"
    none = pseudo_map(annotation(), "t1", softmax(volume(-0.4), volume(-0.4)), np.zeros((2, 1, 1), np.intp))
    assert none.ravel().tolist() == [3, 3], "both slices are tagged with oedema"


def test_a_tag_that_was_not_found_leaves_a_drawn_region_and_what_is_outside_it_alone():
    """Core lies within oedema, which somebody drew: outside there is none, inside the outline stays."""
    sources = {**SOURCES, "mixed": {"cases": ["x*"], "annotated": ["oedema"], "tagged": ["core"]}}
    labels = {"background": 0, "oedema": [1, 2], "core": 2}
    own = np.tile(np.array([1, 0], np.intp)[None, None], (2, 1, 1))
    nothing = volume(-0.5, -0.5)
    saved = 1 / (1 + np.exp(-np.stack([nothing, nothing]) / 0.1))
    found = pseudo_map(annotation(labels, sources, regions_class_order=[1, 2]), "x1", saved, own)
    assert found.reshape(2, 2).tolist() == [[1, 0], [1, 0]]


def test_regions_are_written_from_the_largest_to_the_smallest():
    labels = {"background": 0, "oedema": [1, 2], "core": 2}
    sources = {name: source for name, source in SOURCES.items() if name != "mixed"} | {
        "mixed": {"cases": ["x*"], "annotated": [], "tagged": ["core"]}
    }
    oedema, core = volume(0.4, 0.4, -0.4, 0.4), volume(-0.4, 0.4, -0.4, 0.05)
    saved = 1 / (1 + np.exp(-np.stack([oedema, core]) / 0.1))
    found = pseudo_map(
        annotation(labels, sources, regions_class_order=[1, 2]), "t1", saved, np.zeros((2, 1, 4), np.intp)
    )
    assert found[1, 0].tolist() == [1, 2, 0, 3]


def test_it_is_counted_in_how_many_tagged_slices_a_label_was_annotated():
    table, found = annotation().table, np.zeros((2, 3, 3), dtype=int)
    found[1, 0] = (1, 3, 3)
    assert found_slices(table, "t1", found).tolist() == [[2, 1], [1, 0]], "oedema in one of two, core in none of one"
    found[0, 0] = (2, 2, 0)
    assert found_slices(table, "t1", found).tolist() == [[2, 1], [1, 0]], "core is not tagged in the slice it is in"
    assert found_slices(table, "x1", found).tolist() == [[0, 0], [2, 1]], "oedema is annotated there, not tagged"


def test_the_result_declares_what_the_model_annotated():
    result = annotated_json(annotation())
    assert result["labels"]["ignore"] == 3
    assert "tags" not in result
    assert result["sources"]["ours"] == {"cases": ["m*"], "annotated": ["oedema", "core"]}
    pseudo = result["sources"]["tags (pseudo)"]
    assert pseudo == {"cases": ["t*"], "annotated": ["core", "oedema"], "modality": "MR", "dataset": "D"}
    assert result["sources"]["mixed (pseudo)"]["annotated"] == ["oedema", "core"]
    table = SourceTable.from_dataset_json(result, ["m1", "t1", "x1"])
    assert table.is_complete
