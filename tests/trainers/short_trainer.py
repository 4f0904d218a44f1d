"""Trainers for tests of whole chains, in a folder of their own: nnU-Net imports every file of a folder it is given."""

from nnunetv2_conemos.methods import ConditionalFiLMTrainer


class ShortConditionalFiLMTrainer(ConditionalFiLMTrainer):
    """Four epochs of five steps, each with a checkpoint."""

    settings = {  # noqa: RUF012
        "num_epochs": 4,
        "num_iterations_per_epoch": 5,
        "num_val_iterations_per_epoch": 2,
        "save_every": 1,
    }
