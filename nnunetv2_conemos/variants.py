"""Names of trainers of other lengths, and of those that do not mirror."""

from __future__ import annotations

EPOCHS = {n: f"_{n}epoch{'s' * (n > 1)}" for n in (1, 5, 10, 20, 50, 100, 250)}  # the names nnU-Net gives its own
STOCK, STOCK_WITHOUT_MIRRORING = "nnUNetTrainer", "nnUNetTrainerNoMirroring"


def variant(trainer: str, epochs: int | None = None, mirroring: bool = True) -> str:
    """`Trainer_NoMirroring_10epochs`; None is the trainer's own number of epochs."""
    if not mirroring:
        trainer = STOCK_WITHOUT_MIRRORING if trainer == STOCK else f"{trainer}_NoMirroring"
    return trainer + ("" if epochs is None else EPOCHS[epochs])
