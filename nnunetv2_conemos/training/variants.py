"""Names of the variants of trainers: other numbers of epochs, no mirroring, AdamW."""

from __future__ import annotations

NNUNET_EPOCHS = (1, 5, 10, 20, 50, 100, 250)  # lengths of nnU-Net's own variants
EPOCHS = {n: f"_{n}epoch{'s' * (n > 1)}" for n in sorted((*NNUNET_EPOCHS, 2, 30, 40))}  # and of ours
STOCK = "nnUNetTrainer"


def variant(trainer: str, epochs: int | None = None, mirroring: bool = True, adam: bool = False) -> str:
    """Return the name of a variant, `Trainer_Adam1en3_NoMirroring_10epochs`; `epochs` None: the default number.

    nnU-Net's own have no underscores before the epochs: `nnUNetTrainerNoMirroring`, `nnUNetTrainerAdam1en3`.
    """
    join = "" if trainer == STOCK else "_"
    chosen = [name for name, wanted in (("Adam1en3", adam), ("NoMirroring", not mirroring)) if wanted]
    return "".join([trainer, *(join + name for name in chosen), "" if epochs is None else EPOCHS[epochs]])
