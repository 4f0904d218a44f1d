"""Trainers of one short epoch, for nnU-Net's integration recipe: what it tests is the chain, not the network."""

from nnunetv2_conemos.methods import ConditionalFiLMTrainer, LabelSetFiLMTrainer

FEW = {"num_epochs": 1, "num_iterations_per_epoch": 10, "num_val_iterations_per_epoch": 3}


class FewStepsConditionalFiLMTrainer(ConditionalFiLMTrainer):
    """One epoch of ten steps."""

    settings = FEW


class FewStepsLabelSetFiLMTrainer(LabelSetFiLMTrainer):
    """One epoch of ten steps."""

    settings = FEW
