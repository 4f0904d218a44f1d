"""Every trainer that the conformance suite asks: those of the package, and the method of the documentation."""

import importlib.util

from paths import ROOT

from nnunetv2_conemos import methods


def documented_trainer():
    file = ROOT / "docs" / "example_method.py"
    spec = importlib.util.spec_from_file_location("example_method", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LabelAsInputTrainer


EXPORTED = [name for name in methods.__all__ if "_" not in name]  # no variants
TRAINERS = [getattr(methods, name) for name in EXPORTED] + [documented_trainer()]
