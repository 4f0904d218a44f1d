"""Image tags as they are declared, and what they say about the slices that preprocessing leaves."""

import json

import numpy as np
import pytest
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.tags import possible_labels, slices_with
from nnunetv2_conemos.datasets.splits import stratified_split
from nnunetv2_conemos.errors import SourceError
from nnunetv2_conemos.methods.cmer.slices import known_of_case

LABELS = {"background": 0, "oedema": 1, "core": 2}
SOURCES = {
    "masks": {"cases": ["m*"], "annotated": ["oedema", "core"]},
    "mixed": {"cases": ["x*"], "annotated": ["oedema"], "tagged": ["core"]},
    "tags": {"cases": ["t*"], "annotated": [], "tagged": ["core", "oedema"]},
}
CASES = ["m1", "x1", "t1", "t2"]
TAGS = {
    "axis": "z",
    "cases": {
        "x1": {"core": [2, 0]},
        "t1": {"core": [1], "oedema": True},
        "t2": {"core": False, "oedema": []},
    },
}


def table(tags=TAGS, sources=SOURCES, cases=CASES, labels=LABELS):
    content = {"labels": labels, "sources": sources} | ({} if tags is None else {"tags": tags})
    return SourceTable.from_dataset_json(json.loads(json.dumps(content)), cases)


def test_a_table_answers_what_is_tagged():
    known = table()
    assert known.known("x1").tolist() == [True, False]
    assert known.tagged("x1").tolist() == [False, True]
    assert known.tags("x1") == {"core": (2, 0)}
    assert known.tags("t2") == {"core": False, "oedema": ()}
    assert known.tags("m1") == {}
    assert not known.known("t1").any(), "to every other trainer the case is unlabelled"
    assert known.never_annotated() == []
    only_tags = {"T": {"cases": ["*"], "annotated": [], "tagged": ["core"]}}
    without_masks = table({"cases": {case: {"core": False} for case in CASES}}, only_tags)
    assert without_masks.never_annotated() == ["oedema", "core"]
    assert without_masks.never_annotated(tags=True) == ["oedema"]


def changed(case, label, value):
    cases = {**TAGS["cases"], case: {**TAGS["cases"].get(case, {}), label: value}}
    return {**TAGS, "cases": cases}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (None, "case 'x1' has no entry for label 'core'"),
        ({**TAGS, "axis": "w"}, "axis.*'x', 'y' or 'z'"),
        ({**TAGS, "slices": 1}, "slices: Extra inputs"),
        ([], "`tags`: Input should be a valid dictionary.*found \\[\\]"),
        (changed("t1", "core", [1, -2]), "case 't1', label 'core', entry 1: .*greater than or equal to 0.*found -2"),
        (changed("t1", "core", ["5"]), "case 't1', label 'core', entry 0: .*found '5'"),
        (changed("t1", "core", 7), "case 't1', label 'core': .*found 7"),
        (changed("t1", "core", [4, 4]), "case 't1', label 'core': slice 4 is named twice"),
        (changed("t9", "core", [4]), "case 't9' is not in this dataset"),
        (changed("m1", "core", [4]), "case 'm1' has an entry for label 'core', which its source does not declare"),
        (changed("x1", "liver", [4]), "case 'x1' has an entry for label 'liver'"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_by_case_label_and_slice(tags, words):
    with pytest.raises(SourceError, match=words):
        table(tags)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"annotated": ["oedema", "core"], "tagged": ["core"]}, "'mixed': core is both annotated and tagged"),
        ({"annotated": ["oedema"], "tagged": ["cor"]}, "source 'mixed', tagged: 'cor' is not a label.*mean 'core'"),
    ],
    ids=str,
)
def test_sources_that_contradict_themselves_are_refused(source, words):
    with pytest.raises(SourceError, match=words):
        table(sources=SOURCES | {"mixed": {"cases": ["x*"], **source}})


def test_tags_need_sources():
    with pytest.raises(SourceError, match="`tags` without `sources`"):
        SourceTable.from_dataset_json({"labels": LABELS, "tags": TAGS}, CASES)


def test_tagged_cases_are_split_where_masks_are_few():
    cases = [f"t{i:02d}" for i in range(10)]
    sources = {"tags": SOURCES["tags"], "masks": SOURCES["masks"]}
    few = {"cases": {case: {"core": [0], "oedema": [0]} for case in cases}}
    folds = stratified_split(table(few, sources, [*cases, "m1", "m2"]))
    assert sorted(case for fold in folds for case in fold["val"]) == sorted([*cases, "m1", "m2"])
    masks = [f"m{i}" for i in range(5)]
    folds = stratified_split(table(few, sources, [*cases, *masks]))
    assert sorted(case for fold in folds for case in fold["val"]) == masks
    assert all(set(cases) < set(fold["train"]) for fold in folds)


@pytest.mark.parametrize(
    ("tag", "present", "known"),
    [
        ((2, 0), [1, 0, 1, 0], [1, 1, 1, 1]),
        (False, [0, 0, 0, 0], [1, 1, 1, 1]),
        (True, None, [0, 0, 0, 0]),
        ((), [0, 0, 0, 0], [1, 1, 1, 1]),
    ],
    ids=str,
)
def test_a_volume_that_shows_a_label_says_nothing_about_its_slices(tag, present, known):
    found = slices_with(tag, 4, "here")
    assert found[1].tolist() == known
    if present:
        assert found[0].tolist() == present


def test_the_tag_of_an_image_of_one_slice_is_that_of_the_slice():
    assert [part.tolist() for part in slices_with(True, 1, "here")] == [[True], [True]]


def test_only_labels_absent_from_the_whole_volume_are_impossible():
    tags = {"absent": False, "nowhere": (), "somewhere": True, "first": (0,)}
    assert possible_labels(tags, [*tags, "not tagged"]).tolist() == [False, False, True, True, True]


def test_slices_that_do_not_exist_are_refused():
    with pytest.raises(SourceError, match="here: tagged in slice 4, but the image has 4 slices"):
        slices_with((1, 4), 4, "here")


class OneCase:
    """A dataset of nnU-Net with one case; its label map is only given to whoever may read it."""

    def __init__(self, image, target, properties):
        self.loaded = image, target, None, properties

    def load_case(self, _):
        return self.loaded


def preprocessed(transpose, seed=0):
    """A volume with zeros around it, through nnU-Net's own preprocessing; and its label map before that."""
    rng = np.random.default_rng(seed)
    image = np.zeros((2, 9, 12, 14), dtype=np.float32)
    image[:, 2:8, 1:11, 3:12] = rng.uniform(1, 2, (2, 6, 10, 9))
    target = np.zeros((1, 9, 12, 14), dtype=np.int8)
    for label in (1, 2):
        for _ in range(2):
            z, y, x = rng.integers((2, 1, 3), (6, 9, 10))
            target[0, z : z + 2, y : y + 2, x : x + 2] = label
    sampling = "resample_data_or_seg_to_shape"
    kwargs = {"order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "architecture": {},
        "spacing": [0.5, 0.5],
        "normalization_schemes": ["ZScoreNormalization"] * 2,
        "use_mask_for_norm": [False] * 2,
        "resampling_fn_data": sampling,
        "resampling_fn_data_kwargs": {"is_seg": False, **kwargs},
        "resampling_fn_seg": sampling,
        "resampling_fn_seg_kwargs": {"is_seg": True, **kwargs},
    }
    plans = {
        "transpose_forward": list(transpose),
        "foreground_intensity_properties_per_channel": {"0": {}, "1": {}},
        "label_manager": "LabelManager",
        "configurations": {"2d": configuration},
    }
    manager = PlansManager(plans)
    dataset_json = {"labels": LABELS, "channel_names": {"0": "T1", "1": "T2"}}
    properties = {"spacing": [1.0, 1.0, 1.0]}
    data, seg, properties = DefaultPreprocessor(verbose=False).run_case_npy(
        image, target, properties, manager, manager.get_configuration("2d"), dataset_json
    )
    assert data.shape[2] > 10, "resampled in the plane"
    return OneCase(data, seg, properties), target[0]


AXES = {0: "z", 1: "y", 2: "x"}


@pytest.mark.parametrize("transpose", [(0, 1, 2), (1, 0, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_every_slice_has_the_tag_of_its_original_slice(transpose, seed):
    dataset, target = preprocessed(transpose, seed)
    axis = transpose[0]
    truth = np.stack([(np.moveaxis(target, axis, 0) == label).any((1, 2)) for label in (1, 2)], 1)  # [D,K]
    first, last = ((2, 8), (1, 11), (3, 12))[axis]
    bits = {name: np.flatnonzero(truth[:, k]).tolist() for k, name in enumerate(("oedema", "core"))}
    declared = {"axis": AXES[axis], "cases": {"t1": bits, "x1": {"core": bits["core"]}, "t2": bits}}
    known = table(declared)
    assert truth.any(0).all()
    for case in ("m1", "x1", "t1"):
        found = known_of_case(dataset, case, known, transpose)
        assert found.present.tolist() == truth[first:last].tolist(), case
        assert found.known.all()


def test_tags_along_another_axis_than_the_slices_are_refused():
    dataset, _ = preprocessed((1, 0, 2))
    with pytest.raises(SourceError, match=r"case 't1', label 'core': slices are counted along z, but .* along y"):
        known_of_case(dataset, "t1", table(changed("t1", "oedema", False)), (1, 0, 2))
    whole = table(changed("t1", "core", True))
    assert not known_of_case(dataset, "t1", whole, (1, 0, 2)).known.any(), "a volume has no axis"


def test_slices_beyond_the_volume_are_refused_before_the_crop():
    dataset, _ = preprocessed((0, 1, 2))
    last = known_of_case(dataset, "t1", table(changed("t1", "core", [8])), (0, 1, 2))
    assert not last.present[:, 1].any(), "slice 8 is not in the crop"
    with pytest.raises(SourceError, match="case 't1', label 'core': tagged in slice 9, but the image has 9 slices"):
        known_of_case(dataset, "t1", table(changed("t1", "core", [9])), (0, 1, 2))


def test_the_label_map_of_a_tagged_case_is_not_read():
    dataset, _ = preprocessed((0, 1, 2))
    image, _, _, properties = dataset.loaded
    dataset.loaded = image, None, None, properties
    found = known_of_case(dataset, "t1", table(), (0, 1, 2))
    assert found.present[:, 1].tolist() == [False] * 6, "slice 1 is cut off"
    assert found.known.tolist() == [[False, True]] * 6, "oedema: present somewhere"


def test_an_ignored_voxel_leaves_open_whether_a_label_is_there():
    labels = LABELS | {"ignore": 3}
    dataset, _ = preprocessed((0, 1, 2))
    target = np.zeros_like(dataset.loaded[1])
    target[0, 0, 0, 0], target[0, 1, 0, :2] = 3, (3, 2)
    dataset.loaded = (dataset.loaded[0], target, None, dataset.loaded[3])
    found = known_of_case(dataset, "m1", table(labels=labels), (0, 1, 2))
    assert found.known[:, 0].tolist() == [False, False, True, True, True, True]
    assert found.known[:, 1].tolist() == [False, True, True, True, True, True]
    assert found.present[:, 1].tolist() == [False, True, False, False, False, False]
