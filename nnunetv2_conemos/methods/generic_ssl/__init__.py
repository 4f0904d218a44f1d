"""A&D: generic semi-supervised segmentation (Wang & Li, NeurIPS 2023)."""

from nnunetv2_conemos.methods.generic_ssl.trainer import GenericSSLTrainer

__all__ = ["GenericSSLTrainer"]
