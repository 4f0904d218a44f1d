"""Declarations that are understood, and those that are refused with what to do about them."""

import numpy as np
import pytest

from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import EVERYTHING, SourceTable
from nnunetv2_conemos.datasets.splits import stratified_split
from nnunetv2_conemos.errors import SourceError

LABELS = {"background": 0, "spleen": 2, "liver": 1, "kidney": 3}
CASES = ["liver_1", "liver_2", "spleen_1", "plain_1"]
SOURCES = {
    "LiTS": {"cases": ["liver_*"], "annotated": ["liver", "kidney"], "modality": "CT", "weight": 2},
    "MSD": {"cases": ["spleen_*"], "annotated": ["spleen"]},
    "Unlabelled": {"cases": ["plain_*"], "annotated": []},
}


def table(sources=SOURCES, labels=LABELS, cases=CASES, **more):
    return SourceTable.from_dataset_json({"labels": labels, "sources": sources, **more}, cases)


def test_columns_follow_label_ids_not_the_order_of_the_file():
    known = table()
    assert known.labels.names == ("liver", "spleen", "kidney")
    assert known.known("liver_2").tolist() == [True, False, True]
    assert known.known("plain_1").tolist() == [False, False, False]
    assert known.annotated("spleen_1") == ("spleen",)
    assert known.weight("liver_1") == 2
    assert known.counts().tolist() == [[2, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_without_sources_everything_is_annotated():
    known = SourceTable.from_dataset_json({"labels": LABELS}, CASES)
    assert known.source_of("plain_1") == EVERYTHING
    assert known.known("plain_1").all()


def test_regions_keep_the_order_of_nnunets_heads():
    labels = {"background": 0, "uterus": [1, 2, 3], "body": [2, 3], "brain": 3, "ignore": 4}
    space = LabelSpace.from_dataset_json({"labels": labels})
    assert space.has_regions
    assert space.names == ("uterus", "body", "brain")
    assert space.values == ((1, 2, 3), (2, 3), (3,))
    assert space.ignore == 4
    only_uterus = {"S": {"cases": ["*"], "annotated": ["uterus"]}}
    assert table(only_uterus, labels).allowed_values("liver_1") == {0, 1, 2, 3, 4}
    only_brain = {"S": {"cases": ["*"], "annotated": ["brain"]}}
    assert table(only_brain, labels).allowed_values("liver_1") == {0, 3, 4}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "`sources`: expected an object of named sources, found list"),
        ({"S": ["*"]}, "source 'S'"),
        ({"S": {"cases": "*", "annotated": ["liver"]}}, "cases: Input should be a valid tuple"),
        ({"S": {"cases": ["*"], "annotated": ["liver"], "wieght": 1}}, "wieght"),
        ({"S": {"cases": ["*"], "annotated": ["liver"], "weight": 0}}, "weight"),
        ({"S": {"cases": ["*"], "annotated": ["lver"]}}, "Did you mean 'liver'"),
        ({"S": {"cases": ["*"], "annotated": []}}, "all `annotated` lists are empty"),
        ({"S": {"cases": ["liver_*"], "annotated": ["liver"]}}, "in no source: plain_1, spleen_1"),
        ({"S": {"cases": ["*", "x_*"], "annotated": ["liver"]}}, "'x_\\*' matches no case"),
        (
            {"S": {"cases": ["*"], "annotated": ["liver"]}, "T": {"cases": ["liver_1"], "annotated": []}},
            "'liver_1' is in 2 sources \\(S, T\\)",
        ),
    ],
)
def test_bad_sources_are_refused(sources, message):
    with pytest.raises(SourceError, match=message):
        table(sources)


def test_label_ids_with_gaps_are_refused():
    with pytest.raises(SourceError, match=r"1 to 2, found 1, 3"):
        LabelSpace.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 3}})


def test_case_of_no_source_is_named():
    with pytest.raises(SourceError, match="'new_case' is in no source"):
        table().known("new_case")


def test_split_spreads_every_label_over_the_folds_and_never_validates_on_unlabelled_cases():
    cases = [f"a{i}" for i in range(20)] + [f"b{i}" for i in range(5)] + [f"u{i}" for i in range(7)]
    sources = {
        "A": {"cases": ["a*"], "annotated": ["liver"]},
        "B": {"cases": ["b*"], "annotated": ["spleen", "kidney"]},
        "U": {"cases": ["u*"], "annotated": []},
    }
    known = table(sources, cases=cases)
    split = stratified_split(known)
    assert split == stratified_split(known), "a split must be reproducible"
    validated = [case for fold in split for case in fold["val"]]
    assert sorted(validated) == sorted(case for case in cases if not case.startswith("u"))
    for fold in split:
        per_label = np.sum([known.known(case) for case in fold["val"]], axis=0)
        assert per_label.tolist() == [4, 1, 1]
        assert set(fold["train"]) == set(cases) - set(fold["val"])


def test_domains_are_names_or_nothing():
    known = table({**SOURCES, "LiTS": {**SOURCES["LiTS"], "domain": "Lyon"}})
    assert known.domains == ("Lyon",)
    assert [known.domain_of(case) for case in ("liver_1", "spleen_1")] == ["Lyon", None]
    assert table().domains == ()
    with pytest.raises(SourceError, match=r"source 'LiTS': domain: String should have at least 1 character"):
        table({**SOURCES, "LiTS": {**SOURCES["LiTS"], "domain": ""}})


def test_every_fold_validates_on_every_domain_and_label():
    sources = {
        f"{domain}{label}": {"cases": [f"{domain}{label}*"], "annotated": [label], "domain": domain}
        for domain in "AB"
        for label in ("liver", "spleen")
    }
    cases = [f"{name}_{i}" for name in sources for i in range(5 if name.startswith("A") else 10)]
    known = table(sources, cases=cases)
    for fold in stratified_split(known):
        assert "".join(sorted(case[0] for case in fold["val"])) == "AABBBB"
        assert "".join(sorted(case[1] for case in fold["val"])) == "lllsss"
    part = stratified_split(known, 2, cases=[case for case in cases if case.startswith("A")])
    assert sorted(len(fold["val"]) for fold in part) == [5, 5]
    assert not [case for fold in part for case in fold["train"] if case.startswith("B")]


def test_split_needs_an_annotated_case_per_fold():
    with pytest.raises(ValueError, match="3 annotated cases cannot be split into 5 folds"):
        stratified_split(table())
