"""Hermes: label and modality priors (Gao et al., CVPR 2024)."""

from nnunetv2_conemos.methods.hermes.trainer import HermesTrainer

__all__ = ["HermesTrainer"]
