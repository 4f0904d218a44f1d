"""Folds for semi-supervised settings: who is labelled, who is not, who is unseen."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from programs import command
from raw_worlds import read_nifti, stripes, write_raw

from nnunetv2_conemos import cli
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import group_sources
from nnunetv2_conemos.datasets.check import check
from nnunetv2_conemos.datasets.dataset_json import read_dataset_json
from nnunetv2_conemos.datasets.folders import raw_cases
from nnunetv2_conemos.datasets.phantom import ORGANS, write_phantom
from nnunetv2_conemos.datasets.plans import small_configuration
from nnunetv2_conemos.datasets.split import share, split
from nnunetv2_conemos.datasets.splits import stratified_draw
from nnunetv2_conemos.datasets.ssl_settings import amount
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.methods import GenericSSLTrainer, UniMOSTrainer

LABELS = {"background": 0, "liver": 1, "spleen": 2}
EVERY = ["liver", "spleen"]
TARGET = "Dataset100_Split"
EVERY_IMAGE = "Dataset003_Sites/imagesTr"
SIZES = {"ct": 10, "mr": 5, "us": 4}


def site(letter: str, annotated: list[str] = EVERY, **more: object) -> dict:
    return {"cases": [f"{letter}*"], "annotated": annotated, **more}


@pytest.fixture
def raw(nnunet_folders) -> Path:
    """Three domains of 10, 5 and 4 cases that are annotated for everything."""
    folder = nnunet_folders / "nnUNet_raw"
    sources = {name: site(name, domain=name.upper(), modality=name) for name in SIZES}
    maps = {f"{name}{i}": stripes(1, 2) for name, size in SIZES.items() for i in range(size)}
    write_raw(folder / "Dataset003_Sites", LABELS, maps, sources=sources)
    return folder


def run(*words: str, number: str = "3") -> int:
    return cli.main(["split", number, *words, "-o", TARGET, "-np", "1"])


def table(raw: Path) -> SourceTable:
    return SourceTable.from_dataset_json(read_dataset_json(raw / TARGET), raw_cases(raw / TARGET))


def labelled(raw: Path) -> set[str]:
    known = table(raw)
    return {case for case in known.cases if known.known(case).any()}


def folds(raw: Path) -> list[dict]:
    return json.loads((raw / TARGET / "splits_final.json").read_text())


def of(*domains: str) -> set[str]:
    return {f"{domain.lower()}{i}" for domain in domains for i in range(SIZES[domain.lower()])}


def refuse_leaks(raw: Path, complete: np.ndarray) -> None:
    """Labelled maps are as they were, all others zero; what was hidden stays beside them; `check` finds no error."""
    for case in table(raw).cases:
        found = read_nifti(raw / TARGET / "labelsTr" / f"{case}.nii.gz")
        assert (found == (complete if case in labelled(raw) else 0)).all()
        assert (read_nifti(raw / TARGET / "labelsTr_complete" / f"{case}.nii.gz") == complete).all()
    assert read_dataset_json(raw / TARGET)["numTraining"] == len(table(raw).cases)
    assert not [finding for finding in check(TARGET, processes=1).findings if finding.severity == "error"]


def test_ssl_keeps_some_labels_and_deals_them_to_folds(raw, capsys):
    assert run("--setting", "ssl", "--labelled", "4") == 0
    refuse_leaks(raw, stripes(1, 2))
    everyone = of(*SIZES)
    assert len(labelled(raw)) == 4
    assert set(table(raw).cases) == everyone
    assert len(folds(raw)) == 4, "as many as labelled cases, where five are too many"
    assert sorted(case for fold in folds(raw) for case in fold["val"]) == sorted(labelled(raw))
    assert all(set(fold["train"]) == everyone - set(fold["val"]) for fold in folds(raw))
    image = raw / "Dataset003_Sites" / "imagesTr" / "us0_0000.nii.gz"
    assert raw_cases(raw / TARGET)["us0"]["images"] == [str(image)]
    printed = capsys.readouterr().out
    assert "│ all    │        4 │         15 │" in printed
    assert "│    3 │        3 │         15 │          1 │" in printed


def test_a_fraction_is_rounded_up_and_five_folds_are_enough(raw):
    assert run("--setting", "ssl", "--labelled", "0.3") == 0
    assert len(labelled(raw)) == 6, "of 19"
    assert len(folds(raw)) == 5
    assert run("--setting", "ssl", "--labelled", "0.3", "--folds", "2", "--overwrite") == 0
    assert [len(fold["val"]) for fold in folds(raw)] == [3, 3]


@pytest.mark.parametrize(("text", "of", "number"), [("0.07", 100, 7), ("0.1", 30, 3), ("1/3", 9, 3), ("0.02", 10, 1)])
def test_fractions_are_exact(text, of, number):
    """0.07 x 100 is 7.000000000000001 in floating point, which would be rounded up to 8."""
    assert amount(share("labelled", text) or Fraction(0), of) == number


def test_validation_cases_are_further_ones(raw):
    assert run("--setting", "ssl", "--labelled", "4", "--validation", "3") == 0
    (fold,) = folds(raw)
    assert len(fold["val"]) == 3
    assert len(labelled(raw)) == 7
    assert set(fold["train"]) == of(*SIZES) - set(fold["val"])


def test_python_splits_as_the_command_does(raw):
    assert run("--setting", "uda", "--target-domain", "MR", "--validation", "2", "--labelled", "0.5") == 0
    report = split(
        "Dataset003_Sites", "Dataset101_Split", setting="uda", target_domains=["MR"], validation=2, labelled=0.5
    )
    assert report.folder == raw / "Dataset101_Split"
    assert report.folds == folds(raw)
    assert report.roles.labelled | report.roles.validation == labelled(raw)
    assert report.notes == ["Validation, and with it the best checkpoint, uses annotations of the target domain."]
    with pytest.raises(ValueError, match="--source-domain belongs to --setting uda, not to ssl"):
        split(3, "Dataset102_Split", setting="ssl", labelled=4, source_domains=["CT"])


def test_the_seed_decides(raw):
    def drawn(seed: str) -> tuple[set[str], list]:
        assert run("--setting", "ssl", "--labelled", "6", "--seed", seed, "--overwrite") == 0
        return labelled(raw), folds(raw)

    assert drawn("1") == drawn("1")
    assert drawn("1")[0] != drawn("2")[0]


def test_domain_adaptation_trains_on_labelled_sources_and_unlabelled_targets(raw):
    assert run("--setting", "uda", "--target-domain", "MR") == 0
    refuse_leaks(raw, stripes(1, 2))
    assert labelled(raw) == of("CT", "US")
    assert set(table(raw).cases) == of(*SIZES)
    assert len(folds(raw)) == 5
    for fold in folds(raw):
        assert of("MR") <= set(fold["train"])
        assert Counter(case[:2] for case in fold["val"])["ct"] == 2, "folds are stratified by domain"
        assert not set(fold["val"]) & of("MR")


def test_one_source_domain_leaves_the_others_out_and_targets_validate_if_asked(raw, capsys):
    words = ("--setting", "uda", "--source-domain", "CT", "--target-domain", "MR", "--validation", "2")
    assert run(*words, "--labelled", "8") == 0
    refuse_leaks(raw, stripes(1, 2))
    assert set(table(raw).cases) == of("CT", "MR")
    (fold,) = folds(raw)
    assert len(fold["val"]) == 2
    assert set(fold["val"]) < of("MR")
    assert len(labelled(raw) & of("CT")) == 8
    assert labelled(raw) & of("MR") == set(fold["val"])
    assert set(fold["train"]) == of("CT", "MR") - set(fold["val"])
    assert "uses annotations of the target domain" in capsys.readouterr().out


def test_domain_generalisation_holds_out_each_domain_in_turn(raw):
    assert run("--setting", "semidg", "--labelled", "0.5") == 0
    refuse_leaks(raw, stripes(1, 2))
    assert Counter(case[:2] for case in labelled(raw)) == {"ct": 5, "mr": 3, "us": 2}
    for number, (unseen, fold) in enumerate(zip(("CT", "MR", "US"), folds(raw), strict=True)):
        taking_part = of(*SIZES) - of(unseen)
        assert set(fold["train"]) | set(fold["val"]) == taking_part
        assert not set(fold["train"]) & set(fold["val"])
        assert set(fold["val"]) <= labelled(raw)
        images = {file.name for file in (raw / TARGET / f"imagesTs_fold_{number}").iterdir()}
        assert images == {f"{case}_0000.nii.gz" for case in of(unseen)}
        truth = list((raw / TARGET / f"labelsTs_fold_{number}").iterdir())
        assert {file.name for file in truth} == {f"{case}.nii.gz" for case in of(unseen)}
        assert all((read_nifti(file) == stripes(1, 2)).all() for file in truth)


def test_a_domain_that_is_never_seen_is_no_training_case(raw):
    words = ("--setting", "semidg", "--labelled", "2", "--test-domain", "MR", "--images", "copy")
    assert run(*words) == 0
    refuse_leaks(raw, stripes(1, 2))
    assert set(table(raw).cases) == of("CT", "US")
    assert Counter(case[:2] for case in labelled(raw)) == {"ct": 2, "us": 2}
    assert len(folds(raw)) == 1
    images = sorted((raw / TARGET / "imagesTs_fold_0").iterdir())
    assert len(images) == 5
    assert not images[0].is_symlink()
    assert len(list((raw / TARGET / "imagesTr").iterdir())) == 14
    assert run(*words, "--validation", "1", "--overwrite") == 0
    assert {case[:2] for case in folds(raw)[0]["val"]} == {"ct", "us"}


def test_a_domain_without_annotations_trains_unlabelled_in_every_fold(raw, capsys):
    file = raw / "Dataset003_Sites" / "dataset.json"
    content = json.loads(file.read_text())
    content["sources"]["mr"]["annotated"] = []
    file.write_text(json.dumps(content))
    assert run("--setting", "semidg", "--labelled", "2") == 0
    assert Counter(case[:2] for case in labelled(raw)) == {"ct": 2, "us": 2}
    assert [of("MR") <= set(fold["train"]) for fold in folds(raw)] == [True, True]
    assert run("--setting", "semidg", "--labelled", "2", "--test-domain", "MR", "--overwrite") == 2
    assert "--test-domain MR: none of its cases is annotated" in capsys.readouterr().err
    assert run("--setting", "uda", "--target-domain", "MR", "--validation", "1", "--overwrite") == 2
    assert "expected annotated cases in the target domains, 1 to validate; found 0" in capsys.readouterr().err
    assert run("--setting", "uda", "--target-domain", "MR", "--overwrite") == 0
    assert labelled(raw) == of("CT", "US")


def test_partial_labels_stay_partial_and_unlabelled_cases_unlabelled(raw):
    maps = {f"l{i}": stripes(1) for i in range(9)} | {f"s{i}": stripes(2) for i in range(3)}
    sources = {
        "livers": site("l", ["liver"], domain="A", weight=2, dataset="ours"),
        "spleens": site("s", ["spleen"], modality="CT"),
        "nothing": site("n", []),
    }
    write_raw(raw / "Dataset004_Partial", LABELS, maps | {"n0": stripes()}, sources=sources)
    assert run("--setting", "ssl", "--labelled", "5", number="4") == 0
    known = table(raw)
    assert known.counts().sum(0).tolist() in ([2, 3], [3, 2]), "as even as can be, although livers abound"
    assert not known.known("n0").any()
    assert all("n0" in fold["train"] for fold in folds(raw))
    liver, spleen = (known.sources[known.source_of(case)] for case in ("l0", "s0"))
    assert (liver.weight, liver.domain, known.dataset_of("l0")) == (2, "A", "ours")
    assert (spleen.modality, spleen.domain, known.dataset_of("s0")) == ("CT", None, "spleens")
    assert not (raw / TARGET / "labelsTr_complete").exists(), "the maps were never complete"


def test_a_dataset_without_sources_is_annotated_for_everything(raw):
    write_raw(raw / "Dataset004_Plain", {**LABELS, "ignore": 3}, {f"c{i}": stripes(1, 2, 3) for i in range(8)})
    assert run("--setting", "ssl", "--labelled", "0.25", number="4") == 0
    refuse_leaks(raw, stripes(1, 2, 3))
    assert len(labelled(raw)) == 2
    assert len({table(raw).dataset_of(case) for case in table(raw).cases}) == 1


SSL, UDA, SEMIDG = (["--setting", setting] for setting in ("ssl", "uda", "semidg"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (SSL, "pass --labelled, the number of cases that stay labelled"),
        ([*SSL, "--labelled", "0"], "--labelled 0: expected a number of cases"),
        ([*SSL, "--labelled", "5%"], "--labelled 5%: expected a number of cases"),
        ([*SSL, "--labelled", "1.5"], "--labelled 1.5: expected a number of cases"),
        ([*SSL, "--labelled", "20"], "expected annotated cases, 20 to stay labelled; found 19"),
        ([*SSL, "--labelled", "19"], "nothing is left to be unlabelled"),
        ([*SSL, "--labelled", "1"], "1 labelled case(s): expected at least one to train and one to validate on"),
        ([*SSL, "--labelled", "4", "--folds", "5"], "--folds 5: expected 2 to 4"),
        ([*SSL, "--labelled", "4", "--folds", "1"], "--folds 1: expected 2 to 4"),
        ([*SSL, "--labelled", "4", "--folds", "2", "--validation", "1"], "pass one of them"),
        (
            [*SSL, "--labelled", "4", "--validation", "16"],
            "expected annotated cases, 4 to stay labelled and 16 to validate; found 19",
        ),
        ([*SSL, "--labelled", "4", "--target-domain", "MR"], "--target-domain belongs to --setting uda, not to ssl"),
        ([*UDA, "--target-domain", "MRI"], "no source has the domain 'MRI' (CT, MR, US). Did you mean 'MR'?"),
        ([*UDA, "--target-domain", "MR", "--source-domain", "C"], "--source-domain: no source has the domain 'C'"),
        ([*UDA, "--target-domain", "MR", "--source-domain", "MR"], "MR cannot be both source and target domain"),
        ([*UDA, "--target-domain", "MR", "CT", "US"], "leave a source domain (CT, MR, US)"),
        (UDA, "name a --target-domain"),
        (SEMIDG, "pass --labelled, the number of cases that stay labelled"),
        ([*SEMIDG, "--labelled", "5"], "annotated cases in domain 'US', 5 to stay labelled; found 4"),
        ([*SEMIDG, "--labelled", "0.99"], "nothing is left to be unlabelled without domain 'CT'"),
        ([*SEMIDG, "--labelled", "1", "--test-domain", "US", "--folds", "3"], "--folds 3: expected 2 to 2"),
        ([*SEMIDG, "--labelled", "2", "--test-domain", "UT"], "Did you mean"),
    ],
)
def test_wrong_requests_are_refused_and_nothing_is_written(raw, capsys, words, message):
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert not (raw / TARGET).exists()


def test_sources_without_a_domain_are_named_where_one_is_needed(raw, capsys):
    maps = {name: stripes(1, 2) for name in ("a0", "a1", "b0", "b1")}
    write_raw(raw / "Dataset004_Silent", LABELS, maps, sources={"here": site("a", domain="A"), "there": site("b")})
    assert run(*UDA, "--target-domain", "A", number="4") == 2
    assert "expected a `domain` in every source, found none in 'there'" in capsys.readouterr().err
    write_raw(raw / "Dataset005_Alone", LABELS, maps, sources={"all": {**site("a", domain="A"), "cases": ["*"]}})
    assert run(*SEMIDG, "--labelled", "1", number="5") == 2
    assert "expected at least two domains, found A" in capsys.readouterr().err


def test_a_label_that_nobody_would_teach_is_named(raw, capsys):
    maps = {f"l{i}": stripes(1) for i in range(5)} | {f"s{i}": stripes(2) for i in range(2)}
    sources = {"livers": site("l", ["liver"], domain="A"), "spleens": site("s", ["spleen"], domain="B")}
    write_raw(raw / "Dataset004_Partial", LABELS, maps, sources=sources)
    assert run(*SSL, "--labelled", "1", "--validation", "1", number="4") == 2
    message = "would be annotated in none of"
    assert message in capsys.readouterr().err
    assert run(*SEMIDG, "--labelled", "2", "--test-domain", "B", number="4") == 2
    assert f"spleen {message} 2 labelled case(s)" in capsys.readouterr().err
    assert run(*UDA, "--target-domain", "A", "--labelled", "2", number="4") == 2
    assert f"liver {message} 2 labelled case(s)" in capsys.readouterr().err
    assert run(*SSL, "--labelled", "3", number="4") == 0
    assert "does not train" in capsys.readouterr().out, "one of the labels has one case, which validates"


def test_what_exists_stays(raw, capsys):
    assert run(*SSL, "--labelled", "4") == 0
    before = folds(raw)
    assert run(*SSL, "--labelled", "5") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert folds(raw) == before
    in_place = ["split", "3", *SSL, "--labelled", "4", "-o", "Dataset003_Sites", "--overwrite"]
    assert cli.main(in_place) == 2
    assert "nothing says that" in capsys.readouterr().err
    assert cli.main([*in_place[:-2], "Dataset003_Other"]) == 2
    assert "its id already belongs to Dataset003_Sites" in capsys.readouterr().err


def plan() -> None:
    extract_fingerprints([100], num_processes=1, show_progress_bar=False)
    plan_experiments([100])


@pytest.mark.slow
def test_planning_copies_the_folds_and_training_takes_them(phantom, nnunet_folders, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # the planner wants at least one
    content = read_dataset_json(phantom)
    sources = {name: {**source, "domain": name} for name, source in content["sources"].items()}
    write_json(phantom / "dataset.json", {**content, "sources": sources})
    raw, words = phantom.parent, (*SSL, "--labelled", "6")
    assert run(*words, number="901") == 0
    plan()
    preprocess([100], "nnUNetPlans", ("2d",), (1,), show_progress_bar=False)
    preprocessed = nnunet_folders / "nnUNet_preprocessed" / TARGET
    assert json.loads((preprocessed / "splits_final.json").read_text()) == folds(raw)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    for number, fold in enumerate(folds(raw)):
        told = (plans | {"continue_training": False}, "2d", number, read_dataset_json(preprocessed))
        trainer = UniMOSTrainer(*told, torch.device("cpu"))
        assert trainer.do_split() == (fold["train"], fold["val"])
    assert len(labelled(raw)) == 6
    assert table(raw).counts().sum(0).tolist() == [2, 2, 2, 2]

    assert run(*words, "--folds", "3", "--overwrite", number="901") == 0
    assert json.loads((preprocessed / "splits_final.json").read_text()) == folds(raw)
    assert len(folds(raw)) == 3
    plan()  # nnU-Net asserts that both files say the same
    write_json(raw / TARGET / "splits_final.json", folds(raw)[::-1])
    with pytest.raises(AssertionError):
        plan()
    capsys.readouterr()
    assert run(*words, "--seed", "1", "--overwrite", number="901") == 2
    assert "preprocessed from label maps in which other cases are annotated" in capsys.readouterr().err


def test_other_folds_of_a_preprocessed_dataset_are_not_replaced_unasked(raw, nnunet_folders, capsys):
    leftover = nnunet_folders / "nnUNet_preprocessed" / TARGET
    leftover.mkdir()
    write_json(leftover / "splits_final.json", [])
    assert run(*SSL, "--labelled", "4") == 2
    assert "holds other folds" in capsys.readouterr().err
    assert not (raw / TARGET).exists()
    assert run(*SSL, "--labelled", "4", "--overwrite") == 0
    assert json.loads((leftover / "splits_final.json").read_text()) == folds(raw)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "fold", "unlabelled", "images", "truth", "domains", "trainer_class"),
    [
        ([*SEMIDG, "--labelled", "0.4"], 2, 6, f"{TARGET}/imagesTs_fold_2", "labelsTs_fold_2", "c", UniMOSTrainer),
        ([*UDA, "--target-domain", "c"], 0, 5, EVERY_IMAGE, "labelsTr_complete", "abc", GenericSSLTrainer),
    ],
)
def test_the_whole_chain(
    nnunet_folders, monkeypatch, capsys, setting, fold, unlabelled, images, truth, domains, trainer_class
):
    """Split, plan, train on labelled and unlabelled cases of several domains, predict and score: in domain
    generalisation the one that the fold does not see, in domain adaptation also the one without labels in training.
    """
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    base, every = nnunet_folders, list(ORGANS)
    source, preprocessed = base / "nnUNet_raw" / "Dataset003_Sites", base / "nnUNet_preprocessed" / TARGET
    write_phantom(source, 5, 0, (16, 32, 32), sources=dict.fromkeys("abc", every), seed=1)
    sources = {name: {"cases": [f"{name}_*"], "annotated": every, "domain": name} for name in "abc"}
    write_json(source / "dataset.json", {**read_dataset_json(source), "sources": sources})
    assert run(*setting) == 0
    plan()
    preprocess([100], "nnUNetPlans", ("2d",), (1,), show_progress_bar=False)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text()) | {"continue_training": False}
    plans["configurations"]["tiny"] = small_configuration(plans, "2d", features=4, batch=2)
    trainer = trainer_class(plans, "tiny", fold, read_dataset_json(preprocessed), torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 3, 3
    trainer.run_training()
    trainer.perform_actual_validation()
    said = capsys.readouterr().out
    assert f"{unlabelled} training cases are not annotated for anything: the unlabelled stream" in said
    raw, how = base / "nnUNet_raw", ("-c", "tiny", "-f", fold, "-tr", trainer_class.__name__, "-device", "cpu")
    words = ("-i", raw / images, "-o", base / "out", "-d", 100, *how)
    command("nnUNetv2_predict", *words, "--disable_tta", "-npp", 1, "-nps", 1)
    evaluated = [str(raw / TARGET / truth), str(base / "out"), "--complete", "-np", "1"]
    assert cli.main(["evaluate", *evaluated]) == 0
    assert {file.name[0] for file in (base / "out").glob("*.nii.gz")} == set(domains)
    assert json.loads((base / "out" / "evaluation.json").read_text())["not_predicted"] == []


SPACE = LabelSpace.from_dataset_json({"labels": {"background": 0, "a": 1, "b": 2, "c": 3}})


SETS = st.lists(st.sampled_from(SPACE.names), min_size=1, unique=True)


@given(st.lists(SETS, min_size=3, max_size=20), st.integers(3, 6), st.integers(0, 9))
def test_a_draw_loses_no_label_if_it_has_a_case_for_each(sets: list[list[str]], number: int, seed: int):
    annotated = {str(case): names for case, names in enumerate(sets)}
    labels = {"background": 0} | {name: i for i, name in enumerate(SPACE.names, start=1)}
    known = SourceTable.from_dataset_json({"labels": labels, "sources": group_sources(annotated, SPACE)}, annotated)
    drawn = stratified_draw(known, known.cases, number, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn)) == min(number, len(annotated))
    assert set(drawn) <= set(annotated)
    assert known.never_annotated(drawn) == known.never_annotated()


@given(st.lists(st.integers(1, 20), min_size=3, max_size=3), st.integers(0, 60), st.integers(0, 9))
def test_labels_of_one_case_each_are_drawn_as_evenly_as_they_go(sizes: list[int], number: int, seed: int):
    annotated = {f"{name}{i}": [name] for name, size in zip(SPACE.names, sizes, strict=True) for i in range(size)}
    labels = {"background": 0} | {name: i for i, name in enumerate(SPACE.names, start=1)}
    known = SourceTable.from_dataset_json({"labels": labels, "sources": group_sources(annotated, SPACE)}, annotated)
    counts = Counter(case[0] for case in stratified_draw(known, known.cases, number, np.random.default_rng(seed)))
    level = next(n for n in range(61) if sum(min(n, size) for size in sizes) >= min(number, sum(sizes)))
    for name, size in zip(SPACE.names, sizes, strict=True):
        assert min(size, max(0, level - 1)) <= counts[name] <= min(size, level)


def test_complete_cases_are_drawn_at_random():
    """Each of ten cases is among the three drawn in about 30 % of 400 draws (five standard deviations: 11 %)."""
    cases = [f"c{i}" for i in range(10)]
    known = SourceTable.from_dataset_json({"labels": LABELS}, cases)
    rng = np.random.default_rng(0)
    times = Counter(case for _ in range(400) for case in stratified_draw(known, cases, 3, rng))
    assert all(math.isclose(times[case] / 400, 0.3, abs_tol=0.115) for case in cases)
