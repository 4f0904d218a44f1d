"""A planned U-Net with one output channel per label, as the baselines use it.

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** labels queried, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.networks.heads import chosen_channels, chosen_heads, is_head, label_vs_rest, nnunet_heads
from nnunetv2_conemos.networks.planned import UNet
from nnunetv2_conemos.records import Query


class MultiHeadUNet(nn.Module):
    """`forward(Query)` answers the labels asked [B,Q,*S], a list over scales under deep supervision; `forward(Tensor)`
    answers nnU-Net's heads at full resolution. With `softmax`, the planned network has a background channel too, which
    is subtracted, so that nnU-Net's softmax over the heads is the network's own.
    """

    encoder: Any
    decoder: Any

    def __init__(
        self,
        unet: UNet,
        num_labels: int,
        background_head: bool,
        output_labels: Sequence[int],
        softmax: bool = False,
    ):
        super().__init__()
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.num_labels, self.background_head, self.softmax = num_labels, background_head, softmax
        self.output_labels = tuple(output_labels)

    def forward(self, query: Query | Tensor) -> Tensor | list[Tensor]:
        if isinstance(query, Query):
            queried = [chosen_channels(logits, query.labels) for logits in self._scales(query.image)]
            return queried if self.decoder.deep_supervision else queried[0]
        logits = self._scales(query)[0]
        chosen = torch.tensor(self.output_labels, device=logits.device) - 1
        answers = label_vs_rest(logits, self.output_labels) if self.softmax else logits[:, chosen]
        return nnunet_heads(answers, self.output_labels, self.num_labels, self.background_head)

    def stock_weights(self, labels: Sequence[int]) -> dict[str, Tensor]:
        """Weights of the stock network with one output, against background, for each of these labels.

        Raises NotImplementedError for some labels of a softmax: the others compete with them.
        """
        weights = self.state_dict()
        if self.softmax:
            if len(labels) < self.num_labels:
                raise NotImplementedError("labels of a softmax are answered together: export all (without --label).")
            weights = {key: value[1:] - value[:1] if is_head(key) else value for key, value in weights.items()}
        return chosen_heads(weights, labels)

    def _scales(self, image: Float[Tensor, "B M *S"]) -> list[Tensor]:
        output = self.decoder(self.encoder(image))
        scales = output if isinstance(output, list) else [output]
        return [z[:, 1:] - z[:, :1] for z in scales] if self.softmax else scales
