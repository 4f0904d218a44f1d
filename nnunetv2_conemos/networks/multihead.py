"""A planned U-Net with one output channel per label: what the baselines condition on nothing with.

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** labels asked, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nnunetv2_conemos.networks.planned import UNet
from nnunetv2_conemos.records import Query

ABSENT = -30.0  # the sigmoid of it is 0; infinity would overflow where nnU-Net sums in half precision


def chosen_channels(logits: Float[Tensor, "B K *S"], labels: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q *S"]:
    """The channels of the labels asked (1..K); where nothing is asked (0), any."""
    space = (1,) * (logits.ndim - 2)
    channel = (labels - 1).clamp_min(0).view(*labels.shape, *space)
    return logits.gather(1, channel.expand(-1, -1, *logits.shape[2:]))


def nnunet_heads(
    answered: Float[Tensor, "B A *S"], labels: Sequence[int], num_labels: int, background_head: bool
) -> Float[Tensor, "B heads *S"]:
    """nnU-Net's heads from the logits of some labels (1..K): background, where there is one, is 0, the rest ABSENT."""
    first = int(background_head)
    heads = answered.new_full((answered.shape[0], first + num_labels, *answered.shape[2:]), ABSENT)
    heads[:, torch.tensor(labels, device=answered.device) - 1 + first] = answered
    heads[:, :first] = 0
    return heads


def against_the_rest(logits: Float[Tensor, "B K *S"], labels: Sequence[int]) -> Float[Tensor, "B A *S"]:
    """Logits of some labels (1..K) against background and all other labels together, for labels of one softmax.

    Given are the logits against background; what nobody annotated was taught as background, and shares its probability.
    """
    answered = torch.tensor(labels, device=logits.device) - 1
    rest = [channel for channel in range(logits.shape[1]) if channel + 1 not in labels]
    if not rest:
        return logits[:, answered]
    others = torch.cat((torch.zeros_like(logits[:, :1]), logits[:, rest]), 1).float()
    return (logits[:, answered] - torch.logsumexp(others, 1, keepdim=True)).to(logits.dtype)


def chosen_heads(weights: dict[str, Tensor], labels: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a network with one output per label, reduced to the outputs of these labels (1..K)."""
    channels = [label - 1 for label in labels]
    return {key: value[channels] if is_head(key) else value for key, value in weights.items()}


def is_head(key: str) -> bool:
    """Whether a parameter belongs to the logits of some resolution."""
    return ".seg_layers." in key


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
        answered: Sequence[int],
        softmax: bool = False,
    ):
        super().__init__()
        self.encoder, self.decoder = unet.encoder, unet.decoder
        self.num_labels, self.background_head, self.softmax = num_labels, background_head, softmax
        self.answered = tuple(answered)

    def forward(self, query: Query | Tensor) -> Tensor | list[Tensor]:
        if isinstance(query, Query):
            asked = [chosen_channels(logits, query.labels) for logits in self._scales(query.image)]
            return asked if self.decoder.deep_supervision else asked[0]
        logits = self._scales(query)[0]
        chosen = torch.tensor(self.answered, device=logits.device) - 1
        answers = against_the_rest(logits, self.answered) if self.softmax else logits[:, chosen]
        return nnunet_heads(answers, self.answered, self.num_labels, self.background_head)

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
