"""UniMOS: completely annotated, partially annotated and unlabelled cases together (PIPO-FAN with UniMatch)."""

from nnunetv2_conemos.methods.unimos.trainer import UniMOSTrainer

__all__ = ["UniMOSTrainer"]
