"""nnU-Net's trainer without mirroring in the lengths that nnU-Net gives its other trainers.

A comparison on data with a left and a right side needs them: `nnUNetTrainerNoMirroring_10epochs`, ...
"""

from __future__ import annotations

import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import nnUNetTrainerNoMirroring

from nnunetv2_conemos.variants import EPOCHS, STOCK, variant

CUDA = torch.device("cuda")


class _Shortened(nnUNetTrainerNoMirroring):
    epochs = 1000

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = CUDA,
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.epochs


def shortened(epochs: int) -> type[nnUNetTrainerNoMirroring]:
    doc = f"nnUNetTrainerNoMirroring for {epochs} epochs."
    name = variant(STOCK, epochs, mirroring=False)
    return type(name, (_Shortened,), {"__module__": __name__, "__doc__": doc, "epochs": epochs})


globals().update({trainer.__name__: trainer for trainer in map(shortened, EPOCHS)})
# pyright: reportUnsupportedDunderAll=false
__all__ = sorted(name for name in globals() if name.startswith("nnUNetTrainerNoMirroring_"))
