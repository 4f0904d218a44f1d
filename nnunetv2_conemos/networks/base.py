"""The common forward pass of all networks: queries in training, nnU-Net's heads at prediction.

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** queried labels, **A** output labels, ***S** space.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnunetv2_conemos.errors import UnsupportedError
from nnunetv2_conemos.networks.heads import nnunet_heads
from nnunetv2_conemos.networks.spec import SKIP_VARIABLE, NetworkSpec
from nnunetv2_conemos.records import OutputLabels, Query


class PartialLabelNetwork(nn.Module, ABC):
    """A network for K labels, of which `output_labels` (1..K) are predicted; these may be set on a built network.

    A subclass defines how queried labels and how the output labels are computed, and has a `decoder` (which may be any
    object) on which nnU-Net switches `deep_supervision`.

    `pass_per_label`: each output label costs a pass of its own, and its logits do not depend on the others. Prediction
    then sets a few output labels at a time; with other networks, it computes all and chooses channels.
    """

    pass_per_label: bool = False

    encoder: Any
    decoder: Any

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        self.num_labels, self.background_head = spec.num_labels, spec.background_head
        self.output_labels = spec.output_labels

    @final
    def forward(self, query: Any) -> Any:
        """Compute what is queried, then clear the condition of the layers, so that it keeps no graph alive.

        A `Query` gives `queried_logits`, of all scales (fine to coarse) under deep supervision and else of the finest.
        An image [B,M,*S] gives nnU-Net's heads [B,heads,*S] in separate memory, because nnU-Net adds mirrored
        passes in place; so do `OutputLabels`, without the other heads. Anything else is a request specific to the
        method.
        """
        try:
            if isinstance(query, Query):
                logits = self.queried_logits(query)
                return logits[0] if isinstance(logits, list) and not self.decoder.deep_supervision else logits
            if isinstance(query, Tensor):
                logits = self.output_logits(query)
                return nnunet_heads(logits, self.output_labels, self.num_labels, self.background_head)
            if isinstance(query, OutputLabels):
                return self.output_logits(query.image)
            return self.training_request(query)
        finally:
            self.clear_condition()

    @abstractmethod
    def queried_logits(self, query: Query) -> Any:
        """Return the logits [B,Q,*S] of the queried labels, or a list of them over scales, fine to coarse.

        A method whose loss needs more returns a record that begins with the logits.
        """

    @abstractmethod
    def output_logits(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B A *S"]:
        """Return the logits of `output_labels` at full resolution, in memory that nothing else uses."""

    def training_request(self, request: Any) -> Any:
        """Compute what a training step of this method needs beside queries; `request` is a record of the method."""
        raise TypeError(f"{type(self).__name__} takes a Query or an image, found {type(request).__name__}.")

    def leave_early(self) -> None:
        """Let labels leave early at prediction; raises NotImplementedError where all are predicted in one pass."""
        raise UnsupportedError(
            "this model predicts all its labels in one pass, so there are none to skip. Predict without --skip-absent "
            f"({SKIP_VARIABLE})."
        )

    def clear_condition(self) -> None:
        """Clear what the layers were conditioned on, in networks with such layers."""

    def output_queries(self, image: Float[Tensor, "B M *S"]) -> Int[Tensor, "B A"]:
        """Return the output labels as queries of every sample."""
        return torch.tensor(self.output_labels, device=image.device).expand(len(image), -1)

    def output_channels(self, logits: Float[Tensor, "B K *S"]) -> Float[Tensor, "B A *S"]:
        """Return the channels of the output labels from the logits of all labels."""
        return logits[:, torch.tensor(self.output_labels, device=logits.device) - 1]
