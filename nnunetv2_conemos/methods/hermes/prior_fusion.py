"""Label and modality priors that exchange information with features by attention (Hermes: Gao et al., CVPR 2024).

Axis letters: **B** sample, **T** label tokens, **P** tokens (labels, then modality), **V** voxels, **F** features,
**X** and **Y** places of two sequences, ***S** space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

HEAD_WIDTH = 32  # features of an attention head
MODALITY_TOKENS = 10  # per modality


class Priors:
    """The shared condition of a network: its layers read what is queried, and store their posterior tokens."""

    labels: Int[Tensor, "B T"]  # 1..K; 0 is the null token
    modality: Int[Tensor, " B"]  # 1..; 0 is unknown
    attended: Bool[Tensor, "B P"]  # tokens that voxels attend to
    posteriors: list[Tensor]  # [B,P,F], one for each place

    def condition(self, labels: Tensor, modality: Tensor, mask_padding: bool) -> None:
        """Set what is queried; the last label is a null token, and other null tokens may be masked from attention."""
        self.labels, self.modality, self.posteriors = labels, modality, []
        label_tokens = (labels > 0) | (not mask_padding)
        always = labels.new_ones((len(labels), 1 + MODALITY_TOKENS), dtype=torch.bool)
        self.attended = torch.cat((label_tokens[:, :-1], always), 1)

    def clear(self) -> None:
        """Clear the posterior tokens, so that no graph is kept alive between calls."""
        self.posteriors = []


class CrossAttention(nn.Module):
    """Cross-attention from x (queries) to y (keys, values), both normalised first; without the residual connection."""

    def __init__(self, features: int):
        super().__init__()
        self.heads = max(1, features // HEAD_WIDTH)
        inner = self.heads * HEAD_WIDTH
        self.norm_x, self.norm_y = nn.LayerNorm(features), nn.LayerNorm(features)
        self.query = nn.Linear(features, inner, bias=False)
        self.key_value = nn.Linear(features, 2 * inner, bias=False)
        self.out = nn.Linear(inner, features)

    def forward(
        self, x: Float[Tensor, "B X F"], y: Float[Tensor, "B Y F"], attended: Bool[Tensor, "B Y"] | None = None
    ) -> Float[Tensor, "B X F"]:
        query = self._split(self.query(self.norm_x(x)))
        key, value = map(self._split, self.key_value(self.norm_y(y)).chunk(2, dim=2))
        mask = None if attended is None else attended[:, None, None]
        attention = F.scaled_dot_product_attention(query, key, value, mask)
        return self.out(attention.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, HEAD_WIDTH)).transpose(1, 2)


def perceptron(features: int) -> nn.Sequential:
    """Build a layer norm and two dense layers with a GELU between them."""
    return nn.Sequential(
        nn.LayerNorm(features, eps=1e-4),
        nn.Linear(features, 4 * features),
        nn.GELU(),
        nn.Linear(4 * features, features),
    )


class FusionBlock(nn.Module):
    """Cross-attention from tokens to voxels, then from voxels to tokens, each with a perceptron; all are residual."""

    def __init__(self, features: int):
        super().__init__()
        self.from_voxels, self.token_mlp = CrossAttention(features), perceptron(features)
        self.from_tokens, self.voxel_mlp = CrossAttention(features), perceptron(features)

    def forward(
        self, tokens: Float[Tensor, "B P F"], voxels: Float[Tensor, "B V F"], attended: Bool[Tensor, "B P"]
    ) -> tuple[Float[Tensor, "B P F"], Float[Tensor, "B V F"]]:
        tokens = tokens + self.from_voxels(tokens, voxels)
        tokens = tokens + self.token_mlp(tokens)
        voxels = voxels + self.from_tokens(voxels, tokens, attended)
        return tokens, voxels + self.voxel_mlp(voxels)


class PriorFusion(nn.Module):
    """A layer that fuses features with the priors of the queried labels; each place has separate priors.

    `labels[k - 1]` is the token of label k, the last row the null token; `modalities[m - 1]` are the tokens of modality
    m, the last those of an unknown one.
    """

    def __init__(self, priors: Priors, num_labels: int, num_modalities: int, features: int, blocks: int):
        super().__init__()
        self.priors = priors
        self.labels = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_labels + 1, features)))
        modalities = torch.empty(num_modalities + 1, MODALITY_TOKENS, features)
        self.modalities = nn.Parameter(nn.init.xavier_uniform_(modalities))
        self.blocks = nn.ModuleList(FusionBlock(features) for _ in range(blocks))

    def forward(self, x: Float[Tensor, "B F *S"]) -> Float[Tensor, "B F *S"]:
        queried, modality = rows(self.labels, self.priors.labels), rows(self.modalities, self.priors.modality)
        tokens, voxels = torch.cat((queried, modality), 1), x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens, voxels = block(tokens, voxels, self.priors.attended)
        self.priors.posteriors.append(tokens)
        return voxels.transpose(1, 2).reshape(x.shape)


def rows(table: Tensor, numbers: Int[Tensor, ...]) -> Tensor:
    """Return rows of a table for numbers 1.., and the last row for 0."""
    return table[(numbers - 1) % len(table)]
