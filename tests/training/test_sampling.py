"""Each label is queried equally often, weights act within a label, and foreground means the queried label."""

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from scipy.stats import chisquare

from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.training.sampling import Cases, Pairs, QueryDataset, queried_labels

LABELS = {"background": 0, "one": 1, "two": 2, "three": 3}


def make_table(**sources):
    """sources: name=(number of cases, annotated[, weight])."""
    cases = [f"{name}{i}" for name, (n, *_) in sources.items() for i in range(n)]
    entries = {
        name: {"cases": [f"{name}*"], "annotated": rest[0], "weight": rest[1] if len(rest) > 1 else 1}
        for name, (_, *rest) in sources.items()
    }
    return SourceTable.from_dataset_json({"labels": LABELS, "sources": entries}, cases)


def test_labels_are_asked_equally_often_however_many_cases_annotate_them():
    table = make_table(a=(90, ["one"]), b=(10, ["two"]))
    np.random.seed(0)
    drawn = np.random.choice(Pairs().identifiers(table, table.cases), 20_000)
    labels = queried_labels(Pairs(), drawn, table).labels.flatten().numpy()
    counts = np.bincount(labels, minlength=4)[1:3]
    assert chisquare(counts).pvalue > 0.01
    assert set(labels) == {1, 2}, "label three is annotated nowhere and must not be queried"


def test_only_annotated_pairs_are_drawn_and_each_about_equally_often():
    table = make_table(a=(7, ["one", "two"]), b=(13, ["two", "three"]))
    identifiers = Pairs().identifiers(table, table.cases)
    assert queried_labels(Pairs(), identifiers, table).known.all()
    pairs, counts = np.unique(identifiers, return_counts=True)
    assert len(pairs) == 2 * 7 + 2 * 13
    for label in "123":
        of_label = counts[[p.endswith(f"::{label}::one") for p in pairs]]
        assert of_label.max() / of_label.min() <= 1.1


def test_weights_act_within_a_label():
    table = make_table(a=(4, ["one"], 3.0), b=(4, ["one"], 1.0), c=(2, ["two"]))
    identifiers = Pairs().identifiers(table, table.cases)
    of_one = [i for i in identifiers if i.endswith("::1::one")]
    assert len(of_one) * 2 == len(identifiers), "labels stay equally often"
    assert np.mean([i.startswith("a") for i in of_one]) == pytest.approx(0.75, abs=0.03)


def test_identifiers_are_what_nnunets_loader_draws_quickly():
    table = make_table(a=(3, ["one"]))
    identifiers = Pairs().identifiers(table, table.cases)
    assert isinstance(identifiers, np.ndarray)
    assert identifiers.ndim == 1
    assert identifiers.dtype.kind == "U"


def test_nothing_to_ask_is_an_error():
    table = make_table(a=(3, ["one"]), u=(2, []))
    with pytest.raises(ValueError, match="none of these 2 cases is annotated"):
        Pairs().identifiers(table, ["u0", "u1"])


class OneCase(nnUNetBaseDataset):
    def __init__(self, locations):
        self.locations, self.identifiers = locations, ["a0"]

    def load_case(self, case):
        return "image", "target", None, {"class_locations": self.locations, "spacing": 1}

    save_case = get_identifiers = None


@pytest.mark.parametrize(
    ("keys", "locations", "expected"),
    [
        ([1, 2, 3], {1: [10], 2: [20], 3: []}, {2: [20]}),
        ([(1, 2), (2,), 3], {(1, 2): [10], (2,): [20], 3: []}, {(2,): [20]}),
        ([1, 2, 3], {1: [10], 2: [20], 3: [], (-1, 0, 1): [99]}, {2: [20], (-1, 0, 1): [99]}),
    ],
)
def test_foreground_is_narrowed_to_the_queried_label(keys, locations, expected):
    table = make_table(a=(1, ["one", "two"]))
    original = dict(locations)
    dataset = QueryDataset(OneCase(locations), Pairs(), table, keys, always=[(-1, 0, 1)])
    properties = dataset.load_case("a0::2::one")[3]
    assert properties["class_locations"] == expected
    assert properties["spacing"] == 1
    assert locations == original, "the dataset's own record must not change"


def test_questions_are_mixed_equally_and_patches_still_centre_on_one_label():
    table = make_table(a=(3, ["one", "two"]), b=(3, ["three"]))
    sampler = Pairs(("one", "annotated", "all"))
    identifiers = sampler.identifiers(table, table.cases)
    kinds, counts = np.unique([i.rsplit("::", 1)[1] for i in identifiers], return_counts=True)
    assert kinds.tolist() == ["all", "annotated", "one"]
    assert len(set(counts)) == 1
    assert sampler.parse("a0::2::one", table) == ("a0", (2,), (2,))
    assert sampler.parse("a0::2::annotated", table) == ("a0", (1, 2), (2,))
    assert sampler.parse("a0::2::all", table) == ("a0", (1, 2, 3), (2,))
    queried = queried_labels(sampler, ["a0::2::all", "b1::3::annotated"], table)
    assert queried.labels.tolist() == [[1, 2, 3], [3, 0, 0]]
    assert queried.known.tolist() == [[True, True, False], [True, False, False]]


def test_datasets_are_drawn_by_the_root_of_their_size():
    table = make_table(a=(90, ["one"]), b=(10, ["two"]), u=(5, []))
    identifiers = Cases().identifiers(table, table.cases)
    share = np.mean([i.startswith("a") for i in identifiers])
    assert share == pytest.approx(np.sqrt(90) / (np.sqrt(90) + np.sqrt(10)), abs=0.02)
    assert not any(i.startswith("u") for i in identifiers), "unlabelled cases teach nothing here"
    assert len(set(identifiers)) == 100
    with pytest.raises(ValueError, match="nothing to sample"):
        Cases().identifiers(table, ["u0"])


def test_the_power_zero_draws_datasets_equally_often_but_for_their_weights():
    table = make_table(a=(90, ["one"]), b=(10, ["two"], 2.0))
    identifiers = Cases(power=0.0).identifiers(table, table.cases)
    assert np.mean([i.startswith("a") for i in identifiers]) == pytest.approx(1 / 3, abs=0.02)


def test_sources_of_one_dataset_are_drawn_as_one():
    entries = {
        "a": {"cases": ["a*"], "annotated": ["one"], "dataset": "D"},
        "b": {"cases": ["b*"], "annotated": ["two"], "dataset": "D", "weight": 3},
        "c": {"cases": ["c*"], "annotated": ["three"]},
    }
    cases = [f"{name}{i}" for name, n in (("a", 15), ("b", 1), ("c", 16)) for i in range(n)]
    table = SourceTable.from_dataset_json({"labels": LABELS, "sources": entries}, cases)
    identifiers = Cases().identifiers(table, cases)
    share = {name: np.mean([i.startswith(name) for i in identifiers]) for name in "abc"}
    assert share["c"] / share["a"] == pytest.approx(16 / 15, abs=0.02), "datasets of equal size"
    assert share["b"] == pytest.approx(3 / (15 + 3 + 16), abs=0.02), "drawn three times as often as it would be"


def test_cases_ask_what_is_annotated_or_everything():
    table = make_table(a=(1, ["one", "three"]))
    assert Cases().parse("a0", table) == ("a0", (1, 3), (1, 3))
    uneven = make_table(a=(1, ["one", "three"]), b=(1, ["two"]))
    assert Cases().parse("b0", uneven) == ("b0", (2, 0), (2,)), "padded, so that questions have one shape"
    assert queried_labels(Cases(), ["b0"], uneven).known.tolist() == [[True, False]]
    assert Cases(every=True).parse("a0", table) == ("a0", (1, 2, 3), (1, 3))
    assert queried_labels(Cases(every=True), ["a0"], table).known.tolist() == [[True, False, True]]
