"""One way for the data to flow: no module imports what stands above it."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "nnunetv2_conemos"
LAYERS = [
    {"errors"},
    {"tags"},
    {"sources"},
    {
        "records",
        "datasets",
        "case_table",
        "splits",
        "roles",
        "summary",
        "relabel",
        "parallel",
        "variants",
        "small_plans",
    },
    {
        "sampling",
        "losses",
        "networks.planned",
        "networks.film",
        "networks.prior_fusion",
        "networks.vnet",
        "networks.difficulty",
        "diffusion",
        "method",
        "schedules",
        "averaging",
        "curves",
        "views",
        "warps",
    },
    {"networks.multihead", "refusals", "slices", "pseudo_maps"},
    {
        "networks.conditional",
        "networks.dynamic_head",
        "networks.multi_decoder",
        "networks.hermes",
        "networks.scale_fusion",
        "networks.hermes_backbone",
        "networks.aggregate_decouple",
        "networks.cam",
    },
    {"networks.label_set", "networks.pyramid", "thresholds"},
    {"trainer"},
    {"semi_supervised"},
    {"methods"},
    {"scores", "phantom", "env", "models", "stock", "statistics"},
    {"figures", "environment", "commands", "whole_slices"},
    {"declare", "raw_writer"},
    {"contents", "hidden"},
    {"check", "evaluation", "best", "adapt", "compare"},
    {"predict", "export"},
    {"labelling"},
    {"complete"},
    {"cams"},
    {"recipe", "hide", "split"},
    {"ingredients"},
    {"merge_report"},
    {"merge"},
    {"demo_report"},
    {"demo"},
    {"benchmark.recipe", "benchmark.measured", "benchmark.against_k"},
    {"benchmark.recipe_file"},
    {"benchmark.workplace", "benchmark.ledger"},
    {"benchmark.material"},
    {"benchmark.networks"},
    {"benchmark.arms", "benchmark.results"},
    {"benchmark.figures"},
    {"benchmark.overlays", "benchmark.priors", "benchmark.accepted"},
    {"benchmark.report"},
    {"benchmark.main"},
    {"cli"},
]
FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def layer(module: str) -> int | None:
    names = [module, module.split(".")[0]]
    return next((i for i, names_here in enumerate(LAYERS) for name in names if name in names_here), None)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__").removesuffix("__init__")


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_imports_point_downwards(file):
    module = module_of(file)
    if not module or module in ("losses", "networks", "benchmark"):
        return
    here = layer(module)
    assert here is not None, f"{module} has no layer; add it to LAYERS where it belongs"
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nnunetv2_conemos."):
            imported = node.module.removeprefix("nnunetv2_conemos.")
            assert layer(imported) <= here, f"{module} imports {imported}"


def test_files_stay_short():
    long = {module_of(f): n for f in FILES if (n := len(f.read_text().splitlines())) > 300}
    assert not long
