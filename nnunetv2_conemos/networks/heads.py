"""Convert logits of labels to nnU-Net's heads, and select channels.

Axis letters: **B** sample, **K** labels, **Q** queried labels, **A** output labels, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

ABSENT = -30.0  # its sigmoid is 0; infinity would overflow where nnU-Net sums in half precision


def chosen_channels(logits: Float[Tensor, "B K *S"], labels: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q *S"]:
    """Return the channels of the queried labels (1..K); for padding (0), any channel."""
    space = (1,) * (logits.ndim - 2)
    channel = (labels - 1).clamp_min(0).view(*labels.shape, *space)
    return logits.gather(1, channel.expand(-1, -1, *logits.shape[2:]))


def nnunet_heads(
    logits: Float[Tensor, "B A *S"], labels: Sequence[int], num_labels: int, background_head: bool
) -> Float[Tensor, "B heads *S"]:
    """Return nnU-Net's heads, given the logits of some labels (1..K): background, if any, is 0, the rest ABSENT."""
    first = int(background_head)
    heads = logits.new_full((logits.shape[0], first + num_labels, *logits.shape[2:]), ABSENT)
    heads[:, torch.tensor(labels, device=logits.device) - 1 + first] = logits
    heads[:, :first] = 0
    return heads


def label_vs_rest(logits: Float[Tensor, "B K *S"], labels: Sequence[int]) -> Float[Tensor, "B A *S"]:
    """Return logits of some labels (1..K) of a softmax against background and all other labels together.

    `logits` are those against background. Labels never annotated were trained as background and share its probability.
    """
    chosen = torch.tensor(labels, device=logits.device) - 1
    rest = [channel for channel in range(logits.shape[1]) if channel + 1 not in labels]
    if not rest:
        return logits[:, chosen]
    others = torch.cat((torch.zeros_like(logits[:, :1]), logits[:, rest]), 1).float()
    return (logits[:, chosen] - torch.logsumexp(others, 1, keepdim=True)).to(logits.dtype)


def chosen_heads(weights: dict[str, Tensor], labels: Sequence[int]) -> dict[str, Tensor]:
    """Reduce the weights of a network with one output per label to the outputs of these labels (1..K)."""
    channels = [label - 1 for label in labels]
    return {key: value[channels] if is_head(key) else value for key, value in weights.items()}


def is_head(key: str) -> bool:
    """Return whether a parameter belongs to the logits of some resolution."""
    return ".seg_layers." in key
