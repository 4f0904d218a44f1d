"""Names become labels: how names are compared, tables, patterns, and what is unknown."""

from pathlib import Path

import pytest
import yaml

from nnunetv2_conemos.conversion.found import FoundCase, Structure
from nnunetv2_conemos.conversion.name_file import write_name_file
from nnunetv2_conemos.conversion.names import NameTable, checked, name_table, normal, require_known
from nnunetv2_conemos.errors import InputError, SourceError


def cases(*names_of_each: tuple[str, ...]) -> list[FoundCase]:
    return [
        FoundCase(f"c{number}", Path(), (), tuple(Structure(name, Path("f")) for name in names))
        for number, names in enumerate(names_of_each)
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Parotid_L", "parotid l"),
        ("DÜNNDARM", "Duenndarm"),
        ("Gefäß", "gefaess"),
        ("Lung-Left.", "lung left"),
        ("Cœur é", "cœur e"),
        ("Ösophagus", "O\u0308sophagus"),
        ("ＣＴＶ １", "ctv 1"),
    ],
)
def test_names_that_are_written_differently_are_equal(one, other):
    assert normal(one) == normal(other)


def test_what_is_different_stays_different():
    assert len({normal(name) for name in ("Lung_L", "Lung_R", "Lung", "LungL", "_", "-")}) == 6


def test_an_exact_name_comes_before_patterns():
    table = NameTable({"liver": ["Leber*"], "tumour": ["Leber Tumor", "GTV*"], "ignore": ["*PTV*"]}, "t")
    found = {name: table.label_of(name) for name in ("LEBER-TUMOR", "leber neu", "xx PTV 1", "GTV", "spleen", "Liver")}
    assert found == {
        "LEBER-TUMOR": "tumour",
        "leber neu": "liver",
        "xx PTV 1": "ignore",
        "GTV": "tumour",
        "spleen": None,
        "Liver": "liver",
    }
    assert table.labels == ["liver", "tumour"]


def test_names_of_two_labels_are_errors_that_name_both():
    with pytest.raises(InputError, match=r"'Cord' stands for 'a' and for 'b'"):
        NameTable({"a": ["cord"], "b": ["Cord"]}, "t")
    with pytest.raises(InputError, match=r"2 labels, a \(l\*\), b \(\*r\)"):
        NameTable({"a": ["l*"], "b": ["*r"]}, "t").label_of("Liver")


def test_the_table_of_tg263_is_consistent():
    table = name_table("tg263", [])
    assert len(table.labels) >= 60
    wanted = {"LeftParotid": "Parotid_L", "Myelon": "SpinalCord", "lung left": "Lung_L", "Speiseröhre": "Esophagus"}
    assert {name: table.label_of(name) for name in wanted} == wanted
    assert table.nearest("Parotiss li") == "Parotid_L"


def test_every_name_is_listed_and_unknown_ones_stop_an_import():
    table = NameTable({"liver": ["Leber"], "ignore": ["Body"]}, "labels.yaml")
    uses = table.uses(cases(("Leber", "Body"), ("Leber", "Lebr"), ("liver",)))
    assert [tuple(use) for use in uses] == [
        ("Leber", 2, "liver", "mapped"),
        ("Body", 1, "ignore", "ignored"),
        ("Lebr", 1, "liver", "unknown"),
        ("liver", 1, "liver", "mapped"),
    ]
    with pytest.raises(InputError, match=r"names that labels.yaml knows, found 1 other.*'Lebr' \(1 case"):
        require_known(uses, table.where)


def test_names_that_are_labels_themselves():
    table = name_table("names", cases(("liver", "rib 10", "rib 2"), ("Liver", "liver")))
    assert table.labels == ["liver", "rib 2", "rib 10"]
    assert table.label_of("LIVER") == "liver"
    with pytest.raises(InputError, match="nnU-Net reserves"):
        name_table("names", cases(("background", "liver")))


def test_the_values_of_a_raw_dataset_keep_their_order():
    structures = tuple(Structure(name, Path("f"), key) for name, key in (("z", "1"), ("b", "10"), ("a", "2")))
    assert name_table("names", [FoundCase("c", Path(), (), structures)]).labels == ["z", "a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a, b]", "expected `label: "),
        ("liver: 3", "expected `label: "),
        ("liver: [1]", "Put names into quotes"),
        ("background: [air]", "is what no label covers"),
        ("liver: [a]\nliver: [b]", "named more than once"),
    ],
)
def test_tables_of_another_form_are_refused(tmp_path, text, message):
    (tmp_path / "labels.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        name_table(tmp_path / "labels.yaml", [])


def test_labels_that_could_not_be_shown_are_refused():
    with pytest.raises(SourceError, match="expected names in one line"):
        checked({" liver": []}, "t")


@pytest.mark.parametrize("keep", [False, True])
def test_the_file_to_edit_can_be_read_again(tmp_path, keep):
    table = NameTable({"liver": ["Leb*"], "spleen": [], "ignore": ["Body"]}, "t")
    uses = table.uses(cases(("Leber: 1", "Body", '"Milz" #2'), ("Leber: 1",)))
    write_name_file(tmp_path / "labels.yaml", table, uses, keep)
    content = yaml.safe_load((tmp_path / "labels.yaml").read_text())
    assert content["liver"] == (["Leb*"] if keep else ["Leber: 1"])
    assert ("spleen" in content) == keep
    assert '# - "\\"Milz\\" #2"  # 1 case(s), nearest: ' in (tmp_path / "labels.yaml").read_text()
    again = name_table(tmp_path / "labels.yaml", [])
    assert [again.label_of(use.name) for use in uses] == ["liver", None, "ignore"]


def test_brackets_are_no_patterns():
    table = NameTable({"a": ["GTV [1]", "PTV [1]*"], "b": ["GTV 2"]}, "t")
    found = [table.label_of(name) for name in ("gtv_[1]", "GTV 1", "PTV [1] neu", "PTV 1 neu")]
    assert found == ["a", None, "a", None]


@pytest.mark.parametrize("label", ["Ignore", "IGNORE", "Background"])
def test_labels_that_are_meant_to_be_reserved_ones_are_refused(label):
    with pytest.raises(InputError, match=label):
        checked({label: ["PTV"]}, "t")
    with pytest.raises(InputError, match=f"a label cannot be called {label}"):
        name_table("names", cases((label,)))
