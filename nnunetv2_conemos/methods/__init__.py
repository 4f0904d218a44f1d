"""Every file of this folder is a method; its trainers, and their epoch variants, are exported from here."""

import importlib
import pkgutil
import sys

from nnunetv2_conemos.trainer import PartialLabelTrainer

EPOCHS = {1: "1epoch", **{n: f"{n}epochs" for n in (5, 10, 20, 50, 100, 250)}}  # the names nnU-Net gives its own


def epoch_variants(trainer: type[PartialLabelTrainer]) -> dict[str, type[PartialLabelTrainer]]:
    """`Trainer_1epoch`, `Trainer_5epochs`, ... set in the module of the trainer, where pickle looks for them."""
    variants = {}
    for epochs, suffix in EPOCHS.items():
        name = f"{trainer.__name__}_{suffix}"
        body = {"__module__": trainer.__module__, "__doc__": trainer.__doc__, "settings": {"num_epochs": epochs}}
        variants[name] = type(name, (trainer,), body)
        setattr(sys.modules[trainer.__module__], name, variants[name])
    return variants


def export_trainers() -> dict[str, type[PartialLabelTrainer]]:
    """Import every method file and collect the trainers defined there."""
    found: dict[str, type[PartialLabelTrainer]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and issubclass(value, PartialLabelTrainer) and "method" in vars(value):
                found |= {name: value, **epoch_variants(value)}
    return found


globals().update(export_trainers())
# pyright: reportUnsupportedDunderAll=false
__all__ = sorted(name for name, value in globals().items() if isinstance(value, type) and "Trainer" in name)
