"""Options of A&D: how it is trained here, and how it was published (Wang & Li, NeurIPS 2023)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nnunetv2_conemos.errors import InputError
from nnunetv2_conemos.methods.generic_ssl.vnet import Norm
from nnunetv2_conemos.networks.spec import PLANS_KEY, MethodOptions

FEW_SAMPLES = 2  # batches of no more get group norms


class GenericSSLOptions(MethodOptions):
    """Options of a plans configuration under the key `conemos`.

    `unlabelled_weight`: of the loss on pseudo-labels (published: 10), reached after the share `ramp` of the training
    (published: 1, and a third for domain generalisation); 0: a decoder that learns from annotations predicts, and
    nothing is learnt from unlabelled cases. `checkpoint`: whether the final one is the best on annotated validation
    cases, as published, or the last.
    `norm`: batch norms as published, or group norms where batches are small. Those mix the statistics of noisy maps and
    images.
    `teacher`: whether pseudo-labels are made with dropout and the statistics of the batch (`train`, as published).
    `diffusion`: whether its decoder votes on pseudo-labels always, as published, or while it is right on annotated
    cases. `difficulty`: the weights of classes, capped, as published, or none. `pull` of the decoder that predicts
    towards the others: constant, as published, or falling with the learning rate. `clip`: clip gradients, as nnU-Net
    does.
    """

    earlier = {"norm": "instance", "diffusion": "always"}  # noqa: RUF012

    unlabelled_weight: float = Field(default=1.5, ge=0)
    ramp: float = Field(default=1.0, gt=0, le=1)
    checkpoint: Literal["best", "last"] = "best"
    norm: Literal["auto", "batch", "group", "instance"] = "auto"
    teacher: Literal["eval", "train"] = "eval"
    diffusion: Literal["while_right", "always"] = "while_right"
    difficulty: Literal["capped", "published", "none"] = "capped"
    pull: Literal["learning_rate", "constant"] = "learning_rate"
    clip: bool = False
    optimiser: Literal["SGD", "nnU-Net"] = "SGD"

    def norm_of(self, batch_size: int) -> Norm:
        """Return the norm of the network, which a small batch decides where `norm` is `auto`."""
        if self.norm == "auto":
            return "batch" if batch_size > FEW_SAMPLES else "group"
        return self.norm


def require_trainable(options: GenericSSLOptions) -> None:
    """Raise InputError for instance norms, with which only networks of before predict."""
    if options.norm == "instance":
        raise InputError(
            f"`{PLANS_KEY}` of the plans configuration, norm: 'instance' is no longer trained: with it, how much is "
            "predicted hardly depends on the image. Use 'group', or 'auto', the default."
        )
