"""`conemos compare`: evaluations side by side, paired by case."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wilcoxon

from nnunetv2_conemos.cli import main
from nnunetv2_conemos.evaluation import significance

SPLEEN = 'spleen, "left"; 2'  # tables hold any name


def write(folder: Path, dice: dict[str, np.ndarray], cases: list[str] | None = None) -> Path:
    """An evaluation as `conemos evaluate` writes it; NaN: not evaluated."""
    rows = [
        {"case": name, "source": "s", "label": label, "dice": value, "nsd": value, "hd95_mm": 1.0, "status": "scored"}
        for label, values in dice.items()
        for name, value in zip(cases or [f"{i:03d}" for i in range(len(values))], values, strict=True)
        if not np.isnan(value)
    ]
    folder.mkdir()
    pd.DataFrame(rows).to_csv(folder / "evaluation.csv", index=False)
    return folder


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap itself is tested in test_significance."""
    monkeypatch.setattr(significance, "RESAMPLES", 200)


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    base = {label: rng.uniform(0.3, 0.8, 12) for label in ("liver", SPLEEN)}
    gains = {"stock": 0.0, "film": 0.05, "same": 0.0}
    return [
        write(tmp_path / name, {k: v + gain * (k == "liver") + 1e-3 * rng.normal(size=12) for k, v in base.items()})
        for name, gain in gains.items()
    ]


def test_means_differences_and_tests_are_paired_by_case(three: list[Path], tmp_path: Path, capsys):
    table, picture = tmp_path / "table.csv", tmp_path / "picture.png"
    assert main(["compare", *map(str, three), "-o", str(table), "--figure", str(picture)]) == 0
    found = pd.read_csv(table).set_index(["label", "model"])
    assert list(found.index.unique("label")) == ["all labels", "liver", SPLEEN]
    liver = found.loc[("liver", "film")]
    assert liver["difference"] == pytest.approx(0.05, abs=0.002)
    assert 0.04 < liver["difference_low"] < liver["difference"] < liver["difference_high"] < 0.06
    scores = [pd.read_csv(folder / "evaluation.csv").query("label == 'liver'")["dice"].to_numpy() for folder in three]
    assert liver["p"] == pytest.approx(wilcoxon(scores[1] - scores[0])[1])
    assert liver["p_holm"] == pytest.approx(4 * liver["p"]), "the smallest of two labels x two models"
    assert found.loc[("all labels", "film"), "p_holm"] == pytest.approx(2 * liver["p"])
    assert found.loc[("all labels", "film"), "difference"] == pytest.approx(0.025, abs=0.001)
    assert found.loc[(SPLEEN, "same"), "p_holm"] > 0.05
    assert found.loc["liver"]["cases"].tolist() == [12, 12, 12]
    assert np.isnan(found.loc[("liver", "stock"), "p"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "difference to stock" in capsys.readouterr().out
    assert main(["compare", *map(str, three), "-o", str(table)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_an_evaluation_without_rows_is_refused(three: list[Path], capsys):
    file = three[1] / "evaluation.csv"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    assert main(["compare", *map(str, three)]) == 2
    assert f"{file}: expected a row for each case and label, found none" in capsys.readouterr().err


def test_only_pairs_that_all_evaluated_count(tmp_path: Path, capsys):
    full = write(tmp_path / "a", {"liver": np.full(6, 0.5), SPLEEN: np.full(6, 0.7)})
    part = write(tmp_path / "b", {"liver": np.array([0.6] * 5 + [np.nan]), SPLEEN: np.full(6, 0.7)})
    assert main(["compare", str(full), str(part), "-o", str(tmp_path / "t.csv")]) == 0
    assert "1 (case, label) pair(s)" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "t.csv").query("label == 'liver'")["cases"].tolist() == [5, 5]


def test_labels_that_a_case_lacks_count_for_nobody(tmp_path: Path):
    """One false voxel in a case without the label would be a Dice of 0 on the one side and nothing on the other."""
    scores = np.linspace(0.5, 0.7, 6)
    folders = [write(tmp_path / name, {"liver": scores}) for name in "ab"]
    for folder, status in zip(folders, ("both empty", "reference empty"), strict=True):
        file = folder / "evaluation.csv"
        table = pd.read_csv(file, dtype={"case": str})
        table.loc[table["case"] == "005", ["dice", "status"]] = [np.nan if "both" in status else 0.0, status]
        table.to_csv(file, index=False)
    assert main(["compare", *map(str, folders), "-o", str(tmp_path / "t.csv")]) == 0
    found = pd.read_csv(tmp_path / "t.csv")
    assert found["cases"].tolist() == [5, 5]
    assert found["difference"].tolist()[1] == 0


def test_models_of_one_name_and_other_metrics(tmp_path: Path, capsys):
    for parent in ("one", "two"):
        (tmp_path / parent).mkdir()
        write(tmp_path / parent / "predictions", {"liver": np.linspace(0.2, 0.9, 8)})
    folders = [str(tmp_path / parent / "predictions") for parent in ("one", "two")]
    assert main(["compare", *folders]) == 2
    assert "several folders are called predictions" in capsys.readouterr().err
    assert main(["compare", f"A={folders[0]}", f"B={folders[1]}", "--metric", "hd95_mm"]) == 0
    assert "hd95_mm" in capsys.readouterr().out


def test_a_model_that_finds_nothing_somewhere_has_no_distance_there(tmp_path: Path, capsys):
    """Means of a metric are of the same cases for every model."""
    folders = [write(tmp_path / name, {"liver": np.linspace(0.4, 0.9, 8)}) for name in "ab"]
    file = folders[1] / "evaluation.csv"
    table = pd.read_csv(file, dtype={"case": str})
    table.loc[:1, ["hd95_mm", "status"]] = [np.nan, "prediction empty"]
    table.to_csv(file, index=False)
    words = ["compare", *map(str, folders), "--metric", "hd95_mm", "--figure", str(tmp_path / "f.png")]
    assert main([*words, "-o", str(tmp_path / "t.csv")]) == 0
    assert "2 (case, label) pair(s) without a hd95_mm from every model" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "t.csv")["cases"].tolist() == [6, 6]
    table.assign(hd95_mm=np.nan, status="prediction empty").to_csv(file, index=False)
    assert main([*words, "--overwrite"]) == 2
    assert "no (case, label) pair has a hd95_mm" in capsys.readouterr().err


def test_a_folder_may_have_an_equals_sign_in_its_name(tmp_path: Path):
    folders = [write(tmp_path / name, {"liver": np.linspace(0.4, 0.9, 8)}) for name in ("lr=1", "lr=2")]
    assert main(["compare", *map(str, folders)]) == 0


def write_other(folder: Path) -> None:
    (folder / "evaluation.csv").unlink()
    folder.rmdir()
    write(folder, {"liver": np.full(2, 0.5)}, ["x", "y"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "evaluation.csv").unlink(), "`conemos evaluate LABELS"),
        (lambda folder: (folder / "evaluation.csv").write_text("case,label\n1,liver\n"), "lacks status, dice"),
        (write_other, "no (case, label) pair has a dice of all models"),
    ],
)
def test_bad_input_names_the_file(three: list[Path], capsys, spoil, message):
    spoil(three[1])
    assert main(["compare", *map(str, three)]) == 2
    assert message in capsys.readouterr().err


def test_one_folder_is_no_comparison(three: list[Path], capsys):
    assert main(["compare", str(three[0])]) == 2
    assert "at least two" in capsys.readouterr().err
