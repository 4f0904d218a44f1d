"""WSS-CMER: segmentation from image tags (Patel & Dolz, Medical Image Analysis 2022)."""

from nnunetv2_conemos.methods.cmer.trainer import CMERTrainer

__all__ = ["CMERTrainer"]
