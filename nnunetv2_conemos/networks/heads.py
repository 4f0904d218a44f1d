"""A planned U-Net with one output channel per label: what the baselines condition on nothing with.

Axis letters: **B** sample, **M** input channel, **K** labels, **Q** labels asked, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

ABSENT = -30.0  # the sigmoid of it is 0; infinity would overflow where nnU-Net sums in half precision


def chosen_channels(logits: Float[Tensor, "B K *S"], labels: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q *S"]:
    """The channels of the labels asked (1..K); where nothing is asked (0), any."""
    space = (1,) * (logits.ndim - 2)
    channel = (labels - 1).clamp_min(0).view(*labels.shape, *space)
    return logits.gather(1, channel.expand(-1, -1, *logits.shape[2:]))


def nnunet_heads(
    output_labels: Float[Tensor, "B A *S"], labels: Sequence[int], num_labels: int, background_head: bool
) -> Float[Tensor, "B heads *S"]:
    """nnU-Net's heads from the logits of some labels (1..K): background, where there is one, is 0, the rest ABSENT."""
    first = int(background_head)
    heads = output_labels.new_full((output_labels.shape[0], first + num_labels, *output_labels.shape[2:]), ABSENT)
    heads[:, torch.tensor(labels, device=output_labels.device) - 1 + first] = output_labels
    heads[:, :first] = 0
    return heads


def label_vs_rest(logits: Float[Tensor, "B K *S"], labels: Sequence[int]) -> Float[Tensor, "B A *S"]:
    """Logits of some labels (1..K) against background and all other labels together, for labels of one softmax.

    Given are the logits against background; what nobody annotated was taught as background, and shares its probability.
    """
    output_labels = torch.tensor(labels, device=logits.device) - 1
    rest = [channel for channel in range(logits.shape[1]) if channel + 1 not in labels]
    if not rest:
        return logits[:, output_labels]
    others = torch.cat((torch.zeros_like(logits[:, :1]), logits[:, rest]), 1).float()
    return (logits[:, output_labels] - torch.logsumexp(others, 1, keepdim=True)).to(logits.dtype)


def chosen_heads(weights: dict[str, Tensor], labels: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a network with one output per label, reduced to the outputs of these labels (1..K)."""
    channels = [label - 1 for label in labels]
    return {key: value[channels] if is_head(key) else value for key, value in weights.items()}


def is_head(key: str) -> bool:
    """Whether a parameter belongs to the logits of some resolution."""
    return ".seg_layers." in key
