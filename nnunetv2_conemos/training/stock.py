"""Stock nnU-Net in all lengths of our trainers, also without mirroring and with AdamW.

Comparisons need them: `nnUNetTrainer_40epochs`, `nnUNetTrainerNoMirroring_10epochs`, `nnUNetTrainerAdam1en3_10epochs`,
`nnUNetTrainerAdam1en3NoMirroring_10epochs`.
"""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam1en3

from nnunetv2_conemos.training.checkpoints import WholeCheckpoints
from nnunetv2_conemos.training.variants import EPOCHS, NNUNET_EPOCHS, STOCK, variant

CUDA = torch.device("cuda")


class _OtherLength(WholeCheckpoints):
    """Stock nnU-Net for another number of epochs."""

    epochs: ClassVar[int]

    def __init__(  # nnU-Net reads the signature
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = CUDA
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.epochs


def stock_trainers() -> dict[str, type[nnUNetTrainer]]:
    """Return name -> trainer of the variants that nnU-Net itself lacks."""
    made = {}
    for mirroring, adam, epochs in product((True, False), (True, False), EPOCHS):
        if mirroring and not adam and epochs in NNUNET_EPOCHS:
            continue  # nnU-Net has it
        bases: Any = (nnUNetTrainerAdam1en3,) * adam + (nnUNetTrainerNoMirroring,) * (not mirroring)
        name = variant(STOCK, epochs, mirroring, adam)
        doc = f"Stock nnU-Net for {epochs} epochs."
        made[name] = type(name, (_OtherLength, *bases), {"__module__": __name__, "__doc__": doc, "epochs": epochs})
    return made


TRAINERS = stock_trainers()
globals().update(TRAINERS)
# pyright: reportUnsupportedDunderAll=false
__all__ = sorted(TRAINERS)
