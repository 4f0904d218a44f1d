"""Voxels of several labels: regions, an order, a share, or an error; never silently."""

import pytest

from nnunetv2_conemos.conversion.case_maps import CaseRecord
from nnunetv2_conemos.conversion.overlaps import overlaps_of, resolve
from nnunetv2_conemos.errors import InputError

LABELS = ["liver", "tumour", "vessel"]


def record(case: str, codes: dict[tuple[str, ...], int], annotated: tuple[str, ...] = ()) -> CaseRecord:
    own = annotated or tuple({label for code in codes for label in code})
    return CaseRecord(case, "", tuple(codes), tuple(codes.values()), own)


RECORDS = [
    record("a", {(): 9, ("liver",): 80, ("liver", "tumour"): 20, ("liver", "vessel"): 1, ("vessel",): 9}),
    record("b", {(): 9, ("tumour",): 5}),
]


def test_overlaps_are_counted_for_each_pair():
    found = {overlap.labels: (overlap.voxels, overlap.cases, overlap.share) for overlap in overlaps_of(RECORDS)}
    assert found == {("liver", "tumour"): (20, ("a",), 1.0), ("liver", "vessel"): (1, ("a",), 0.1)}


def test_nothing_is_resolved_unless_somebody_says_how():
    with pytest.raises(InputError, match=r"(?s)2 pair.*'liver' and 'tumour' share 20 voxels \(100.00%.*lies within"):
        resolve(RECORDS, LABELS, [], False, 0.05)


def test_an_order_says_who_wins():
    resolution = resolve(RECORDS, LABELS, ["vessel", "tumour"], False, 0.0)
    assert resolution.resolved(("liver", "tumour")) == {"tumour"}
    assert resolution.resolved(("liver", "vessel")) == {"vessel"}
    assert resolution.resolved(("tumour", "vessel")) == {"tumour"}
    assert resolution.resolved(()) == frozenset()
    assert [text.partition(": given")[2] for text in resolution.texts] == [
        " to 'tumour' (--order)",
        " to 'vessel' (--order)",
    ]


def test_small_overlaps_go_to_the_smaller_label():
    resolution = resolve(RECORDS, LABELS, ["tumour"], False, 0.1)
    assert resolution.resolved(("liver", "vessel")) == {"vessel"}
    assert "(the smaller)" in resolution.texts[1]


def test_nested_labels_become_regions():
    resolution = resolve(RECORDS, LABELS, ["vessel"], True, 0.0)
    assert resolution.around["tumour"] == {"liver"}
    assert resolution.resolved(("liver", "tumour")) == {"liver", "tumour"}
    assert resolution.resolved(("tumour",)) == {"liver", "tumour"}  # b is not annotated for the liver
    assert resolution.resolved(("liver", "vessel")) == {"vessel"}


def test_a_label_that_sticks_out_in_one_case_is_no_region():
    records = [*RECORDS, record("c", {("tumour",): 1, ("liver", "tumour"): 9, ("liver",): 9})]
    with pytest.raises(InputError, match="'liver' and 'tumour' share 29 voxels"):
        resolve(records, LABELS, ["vessel"], True, 0.0)


def test_regions_within_regions():
    codes = {("a",): 9, ("a", "b"): 9, ("a", "b", "c"): 9}
    resolution = resolve([record("x", codes)], ["a", "b", "c"], [], True, 0.0)
    assert resolution.around == {"a": frozenset(), "b": {"a"}, "c": {"a", "b"}}
    apart = [record("x", {("a",): 9, ("a", "b"): 9}), record("y", {("b",): 9, ("b", "c"): 9})]
    assert resolve(apart, ["a", "b", "c"], [], True, 0.0).around["c"] == {"a", "b"}


def test_two_names_of_the_same_voxels_are_refused():
    with pytest.raises(InputError, match="'a' and 'b' are the same voxels in every case"):
        resolve([record("x", {("a", "b"): 9})], ["a", "b"], [], True, 0.0)


@pytest.mark.parametrize("share", [-0.1, 5, float("nan")])
def test_a_share_lies_between_0_and_1(share):
    with pytest.raises(InputError, match="--max-overlap: expected a share from 0 to 1"):
        resolve(RECORDS, LABELS, [], False, share)


@pytest.mark.parametrize("order", [["kidney"], ["liver", "liver"]])
def test_an_order_names_labels_once(order):
    with pytest.raises(InputError, match="--order: expected labels of the dataset"):
        resolve(RECORDS, LABELS, order, False, 1.0)


def test_of_two_labels_of_one_size_the_first_wins_as_the_report_says():
    records = [record("a", {("tumour", "vessel"): 2, ("tumour",): 3, ("vessel",): 3})]
    resolution = resolve(records, LABELS, [], False, 1.0)
    assert "given to 'tumour'" in resolution.texts[0]
    assert {*map(resolution.resolved, (["tumour", "vessel"], ["vessel", "tumour"]))} == {frozenset({"tumour"})}
    assert len({*resolution.strength.values()}) == len(LABELS)
