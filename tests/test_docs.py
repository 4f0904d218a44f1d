"""The documentation is true: its commands parse, its links lead somewhere, its examples load, its options exist."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LABELS, heads, plans
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from paths import ROOT
from pydantic import BaseModel

from nnunetv2_conemos import cli, methods
from nnunetv2_conemos.annotations.entries import parse_sources
from nnunetv2_conemos.annotations.labels import LabelSpace
from nnunetv2_conemos.annotations.sources import SourceTable
from nnunetv2_conemos.annotations.table_file import group_sources, read_table
from nnunetv2_conemos.benchmark.config_file import read_recipe as read_benchmark
from nnunetv2_conemos.datasets.merge.spec import read_recipe
from nnunetv2_conemos.files import write_json
from nnunetv2_conemos.networks.film_unet import FiLMOptions
from nnunetv2_conemos.networks.spec import method_options

DOCS = ROOT / "docs"
SITE_PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *SITE_PAGES]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
NNUNET_COMMANDS = {entry.name: entry for entry in distribution("nnunetv2").entry_points}
KNOWN_PROGRAMS = {"pip", "export", "make", "pytest", "python", "pre-commit", "git", "conemos"} | NNUNET_COMMANDS.keys()
FOLDERS_OF_FILES = ("docs/", "tests/", "trainers/", "nnunetv2_conemos/", ".ci/", ".github/")
TRAINER_PAGES = DOCS / "reference" / "trainers"


def blocks(page: Path, language: str) -> list[str]:
    """Contents of the fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def command_lines(page: Path) -> Iterator[list[str]]:
    """The commands of the shell blocks, as words; `eval "$(conemos env)"` counts as `conemos env`, a variable as 1."""
    for block in blocks(page, "bash"):
        block = re.sub(r"(?m)(^|\s)#.*$", "", block.replace("\\\n", " "))
        block = re.sub(r"\$\{?\w+\}?", "1", block.replace('eval "$(conemos env)"', "conemos env"))
        for line in re.split(r"\n|&&|;|\bdo\b", block):
            words = shlex.split(line)
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                del words[0]  # a variable set for this command only
            if words:
                yield words


COMMANDS = [words for page in PAGES for words in command_lines(page)]


def of(*programs: str) -> Any:
    chosen = {" ".join(words): words for words in COMMANDS if words[0] in programs}
    return pytest.mark.parametrize("words", chosen.values(), ids=chosen.keys())


def test_only_known_programs_are_shown():
    assert not [words for words in COMMANDS if words[0] not in KNOWN_PROGRAMS]


@of("conemos")
def test_commands_of_this_package_parse(words: list[str], monkeypatch: pytest.MonkeyPatch):
    module = cli.command_module(words[1])
    seen = []
    monkeypatch.setattr(module, "run", seen.append)
    assert cli.main(words[1:]) == 0
    assert len(seen) == 1


class ParsedInstead(Exception):  # noqa: N818
    """The command line was understood; nothing is run."""


@of(*NNUNET_COMMANDS)
def test_commands_of_nnunet_parse_and_name_trainers_that_exist(words: list[str], monkeypatch: pytest.MonkeyPatch):
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self: argparse.ArgumentParser, *args: Any) -> None:
        _, unknown = parse(self, *args)
        assert not unknown
        raise ParsedInstead

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(ParsedInstead):
        NNUNET_COMMANDS[words[0]].load()()
    if "-tr" in words:
        trainer = words[words.index("-tr") + 1]
        assert trainer in methods.__all__ or trainer.startswith(("nnUNetTrainer", "1"))


@of("make")
def test_make_targets_exist(words: list[str]):
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@of("python", "pytest")
def test_scripts_and_tests_exist(words: list[str]):
    files = [word for word in words[1:] if word.endswith(".py") or word.startswith(FOLDERS_OF_FILES)]
    assert [file for file in files if not (ROOT / file).exists()] == []


@EVERY_PAGE
def test_commands_named_in_the_text_exist(page: Path):
    named = set(re.findall(r"`conemos (\w+)", prose(page)))
    assert named <= cli.COMMANDS.keys()
    assert set(re.findall(r"`(nnUNetv2_\w+)", prose(page))) <= NNUNET_COMMANDS.keys()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub make them."""
    titles = re.findall(r"(?m)^#+ (.*)$", prose(page))
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in titles}


@EVERY_PAGE
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    missing = []
    for target in targets:
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        if re.match(r"https?:", target):
            continue
        if not found.exists() or (anchor and anchor not in anchors(found)):
            missing.append(target)
    assert not missing


@EVERY_PAGE
def test_files_named_in_the_text_exist(page: Path):
    named = [name for name in re.findall(r"`([\w./-]+)`", prose(page)) if name.startswith(FOLDERS_OF_FILES)]
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@EVERY_PAGE
def test_lines_are_short(page: Path):
    long = [line for line in prose(page).splitlines() if len(line) > 120 and not line.startswith("|")]
    assert not long, "only code and the rows of tables may be longer"


def quoted_messages() -> list[str]:
    """The longest fixed piece of each message in the tables of the troubleshooting page."""
    page = (DOCS / "how_to" / "troubleshooting.md").read_text()
    tables = re.findall(r"(?ms)^\| message \| remedy \|\n(.*?)\n\n", page)
    quoted = [message for table in tables for message in re.findall(r"(?m)``? ?(.+?) ?``?(?=,| \|| \()", first(table))]
    return [max(re.split(r"\.\.\.|['\"`:]|\d+|\(spleen\)", message), key=len).strip() for message in quoted]


def first(table: str) -> str:
    """The first column of a table."""
    return "\n".join(re.findall(r"(?m)^(\| .*? \|)", table))


def test_quoted_messages_are_those_of_the_code():
    code = "\n".join(file.read_text() for file in sorted((ROOT / "nnunetv2_conemos").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # messages that go on in the next line
    quoted = quoted_messages()
    assert len(quoted) >= 15
    assert [message for message in quoted if message not in code] == []


def test_the_site_shows_every_page():
    shown = re.findall(r'"([\w/]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert sorted(shown) == sorted(str(page.relative_to(DOCS)) for page in SITE_PAGES)


def test_the_reference_lists_every_command():
    listed = re.findall(r"(?m)^\| `conemos (\w+)`", (DOCS / "reference" / "commands.md").read_text())
    assert sorted(listed) == sorted(cli.COMMANDS)


def trainer_page(trainer: str) -> Path:
    """The page whose title is the trainer."""
    (page,) = [page for page in TRAINER_PAGES.glob("*.md") if page.read_text().startswith(f"# {trainer}\n")]
    return page


def test_every_trainer_has_a_page():
    trainers = {name.partition("_")[0] for name in methods.__all__ if not name.startswith("nnUNetTrainer")}
    assert len(trainers) >= 10
    listed = re.findall(r"(?m)^\| \[`(\w+)`\]\((\w+\.md)\)", (TRAINER_PAGES / "index.md").read_text())
    assert dict(listed) == {trainer: trainer_page(trainer).name for trainer in trainers}


def options_models(model: type[BaseModel] = BaseModel) -> dict[str, type[BaseModel]]:
    """The models of all methods' options, by name."""
    return {m.__name__: m for m in model.__subclasses__() if "Options" in m.__name__} | {
        name: found for m in model.__subclasses__() for name, found in options_models(m).items()
    }


@pytest.mark.parametrize(
    ("trainer", "model"),
    [
        ("ConditionalFiLMTrainer", "FiLMOptions"),
        ("LabelSetFiLMTrainer", "LabelSetOptions"),
        ("HermesTrainer", "HermesOptions"),
        ("MultiTalentTrainer", "MultiTalentOptions"),
        ("MarginalLossTrainer", "MarginalOptions"),
        ("DoDNetTrainer", "DoDNetOptions"),
        ("SelfCompletingTrainer", "SelfCompletingOptions"),
        ("UniMOSTrainer", "UniMOSOptions"),
        ("GenericSSLTrainer", "GenericSSLOptions"),
        ("CMERTrainer", "CMEROptions"),
    ],
)
def test_every_option_is_documented_with_its_default(trainer: str, model: str):
    page = trainer_page(trainer).read_text()
    fields = options_models()[model].model_fields
    (section,) = re.findall(r"(?ms)^## Options\n(.*?)(?=^## |\Z)", page)
    assert fields.keys() <= set(re.findall(r"`(\w+)`", section))
    for name, default in re.findall(r"(?m)^\| `(\w+)` \| `([^`]+)` \|", section):
        plain = fields[name].default if isinstance(fields[name].default, str) else json.loads(default)
        assert plain == (default if isinstance(plain, str) else fields[name].default)
    overview = (DOCS / "reference" / "options.md").read_text()
    (row,) = re.findall(rf"(?m)^\| \[`{trainer}`\].*$", overview)
    own = fields.keys() - options_models()["FiLMOptions"].model_fields.keys() or fields.keys()
    assert own <= set(re.findall(r"`(\w+)`", row))


SOURCES_PAGE = DOCS / "reference" / "sources.md"
PARTIAL_PAGE = DOCS / "how_to" / "partial_labels.md"
SPLIT_PAGE = DOCS / "how_to" / "few_annotated_cases.md"
EXAMPLES = [json.loads(block) for page in (SOURCES_PAGE, SPLIT_PAGE) for block in blocks(page, "json")]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: next(iter(example["sources"])))
def test_sources_examples_are_valid(example: dict):
    assert example.keys() >= {"channel_names", "labels", "file_ending", "numTraining", "sources"}
    globs = [glob for source in parse_sources(example["sources"]).values() for glob in source.cases]
    cases = [glob.replace("[0-4]", "3").replace("*", "001") for glob in globs]
    table = SourceTable.from_dataset_json(example, cases)
    assert table.cases == sorted(cases)
    manager = LabelManager(example["labels"], example.get("regions_class_order"))
    assert manager.has_regions == table.labels.has_regions
    assert manager.ignore_label == table.labels.ignore


def test_both_tables_for_declare_say_the_same(tmp_path: Path):
    (as_json,) = (json.loads(block) for block in blocks(PARTIAL_PAGE, "json"))
    (as_csv,) = blocks(PARTIAL_PAGE, "csv")
    write_json(tmp_path / "annotated.json", as_json)
    (tmp_path / "annotated.csv").write_text(as_csv)
    annotated = read_table(tmp_path / "annotated.json").annotated
    assert annotated == read_table(tmp_path / "annotated.csv").annotated
    sources = group_sources(annotated, LabelSpace.from_dataset_json(EXAMPLES[0]))
    assert [source["annotated"] for source in sources.values()] == [["liver"], ["spleen", "kidneys"], []]


def documented_configurations() -> list[tuple[str, dict]]:
    pages = (DOCS / "how_to" / "troubleshooting.md", DOCS / "reference" / "options.md")
    return [item for page in pages for block in blocks(page, "json") for item in json.loads(block).items()]


@pytest.mark.parametrize(("name", "configuration"), documented_configurations(), ids=lambda value: str(value)[:20])
def test_plans_examples_load_and_give_a_network(name: str, configuration: dict):
    content = plans(3).plans
    manager = PlansManager({**content, "configurations": {"3d_fullres": content["configurations"]["tiny"]}})
    manager.plans["configurations"][name] = configuration
    chosen = manager.get_configuration(name)
    assert method_options(chosen, FiLMOptions).model_dump().items() >= configuration.get("conemos", {}).items()
    network = methods.ConditionalFiLMTrainer.build_network_architecture(manager, chosen, 1, heads(LABELS), False)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, *chosen.patch_size)).shape == (1, heads(LABELS), *chosen.patch_size)


def test_the_recipe_is_valid(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(blocks(PARTIAL_PAGE, "yaml")[0])
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.datasets[0].regions == {"liver": ("liver", "tumour")}
    assert recipe.datasets[1].annotated == tmp_path / "who_annotated_what.csv"
    assert recipe.datasets[1].domain == "Lyon"
    assert recipe.datasets[2].images == tmp_path / "more_images"


def test_the_recipe_of_a_benchmark_is_valid(tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(blocks(DOCS / "how_to" / "comparing.md", "yaml")[0])
    recipe = read_benchmark(tmp_path / "recipe.yaml", {})
    assert recipe.arms[2].configuration == "after"
    FiLMOptions.model_validate(recipe.configurations["after"].conemos)


RECIPES = [file for folder in (".", "curves") for file in sorted((DOCS / "benchmarks" / folder).glob("*.yaml"))]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: f"{file.parent.name} {file.stem}")
def test_recipes_of_published_figures_are_valid(file: Path):
    recipe = read_benchmark(file, {})
    learns_from_tags = recipe.hide is not None and recipe.hide.tags is not None
    assert ("CMERTrainer" if learns_from_tags else "ConditionalFiLMTrainer") in {arm.trainer for arm in recipe.arms}
    assert recipe.hold_out or recipe.test


@pytest.mark.parametrize(("file", "key"), [("heart.yaml", "modality"), ("heart_uda.yaml", "domain")])
def test_the_merges_of_published_figures_are_valid(file: str, key: str):
    recipe = read_recipe(DOCS / "benchmarks" / "merges" / file)
    assert [getattr(part, key) for part in recipe.datasets] == ["cine MR", "bSSFP MR"]


def test_the_regions_of_a_published_merge_are_valid():
    (part,) = read_recipe(DOCS / "benchmarks" / "merges" / "brats.yaml").datasets
    assert set(part.regions) == {"whole tumour", "core"}
    assert set(part.regions["core"]) < set(part.regions["whole tumour"]) == set(part.drop)


def test_the_walk_through_quotes_the_example():
    example = (DOCS / "example_method.py").read_text()
    quoted = blocks(DOCS / "how_to" / "new_method.md", "python")
    assert quoted
    assert [block for block in quoted if block not in example] == []
