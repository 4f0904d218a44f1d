"""Every file and folder here is a method; its trainers, and their variants, are exported from here."""

import importlib
import pkgutil
import sys
from itertools import product

from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam

from nnunetv2_conemos.training.trainer import PartialLabelTrainer
from nnunetv2_conemos.training.variants import EPOCHS, variant


def variants(trainer: type[PartialLabelTrainer]) -> dict[str, type[PartialLabelTrainer]]:
    """Create `Trainer_1epoch`, ..., `Trainer_NoMirroring`, ..., `Trainer_Adam1en3_NoMirroring_1epoch`, ...

    They are set in the module of the trainer, where pickle looks for them.
    """
    made = {}
    for adam, mirroring, epochs in product((False, True), (True, False), (None, *EPOCHS)):
        settings = {
            **({"initial_lr": 1e-3} if adam else {}),
            **({} if mirroring else {"mirroring": False}),
            **({} if epochs is None else {"num_epochs": epochs}),
        }
        if settings:
            name = variant(trainer.__name__, epochs, mirroring, adam)
            body = {"__module__": trainer.__module__, "__doc__": trainer.__doc__, "settings": settings}
            made[name] = type(name, (nnUNetTrainerAdam, trainer) if adam else (trainer,), body)
            setattr(sys.modules[trainer.__module__], name, made[name])
    return made


def export_trainers() -> dict[str, type[PartialLabelTrainer]]:
    """Import every method file and collect the trainers defined there."""
    found: dict[str, type[PartialLabelTrainer]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and issubclass(value, PartialLabelTrainer) and "method" in vars(value):
                found |= {name: value, **variants(value)}
    return found


TRAINERS = export_trainers()
globals().update(TRAINERS)
# pyright: reportUnsupportedDunderAll=false
__all__ = sorted(TRAINERS)
