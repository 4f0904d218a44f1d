"""One encoder for images and for noisy label maps, and three decoders (A&D: Wang & Li, NeurIPS 2023).

Axis letters: **B** sample, **M** input channel, **K** labels, **C** = K + 1 classes, background first, ***S** space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nnunetv2_conemos.methods.generic_ssl.difficulty import ClassDifficulty
from nnunetv2_conemos.methods.generic_ssl.vnet import Decoder, Encoder, Shape, TimeEmbedding
from nnunetv2_conemos.networks.heads import chosen_channels, label_vs_rest, nnunet_heads
from nnunetv2_conemos.records import Query


class Noisy(NamedTuple):
    """Images [B,M,*S], noisy maps of their classes [B,C,*S], and after which step of the diffusion [B] they are so."""

    image: Tensor
    maps: Tensor
    step: Tensor


class BothStreams(NamedTuple):
    """All that a training step asks with a gradient: annotated images with noisy maps, unlabelled images [B,M,*S].

    No unlabelled ones, where nothing is learnt from them.
    """

    annotated: Noisy
    unlabelled: Tensor | None


class AggregateDecouple(nn.Module):
    """The encoder serves all decoders: `denoiser` and `reweighted` learn from annotations, `decoder` from
    pseudo-labels. That one predicts, or, without pseudo-labels (`learns_unlabelled`), `reweighted`.

    `of_classes`: parameters that mean something for its labels in their order only.
    `forward(Query)` answers the labels asked [B,Q,*S] against background, `forward(Tensor)` nnU-Net's heads, and
    `forward(BothStreams)` the logits [B,C,*S] of the three decoders, or of two.
    """

    of_classes = ("denoiser.head", "reweighted.head", "decoder.head", "diffusion_stem.operation", "difficulty")

    def __init__(
        self, shape: Shape, channels: int, classes: int, output_labels: Sequence[int], learns_unlabelled: bool = True
    ):
        super().__init__()
        self.classes, self.output_labels, self.learns_unlabelled = classes, tuple(output_labels), learns_unlabelled
        self.image_stem = shape.unit(channels, 0, timed=False)
        self.diffusion_stem = shape.unit(channels + classes, 0, timed=False)
        self.time = TimeEmbedding()
        self.encoder = Encoder(shape)
        self.denoiser = Decoder(shape, classes, timed=True)
        self.reweighted, self.decoder = Decoder(shape, classes), Decoder(shape, classes)
        self.decoder.requires_grad_(learns_unlabelled)
        self.difficulty = ClassDifficulty(classes)

    def forward(self, query: Query | BothStreams | Tensor) -> Tensor | tuple[Tensor, ...]:
        if isinstance(query, BothStreams):
            annotated, unlabelled = query
            supervised = self.denoise(annotated), self.reweight(annotated.image)
            return supervised if unlabelled is None else (*supervised, self.decoder(self.encode(unlabelled)))
        if isinstance(query, Query):
            return chosen_channels(self._labels(query.image), query.labels)
        logits = self._labels(query)
        return nnunet_heads(label_vs_rest(logits, self.output_labels), self.output_labels, self.classes - 1, True)

    def _labels(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B K *S"]:
        predicting = self.decoder if self.learns_unlabelled else self.reweighted
        return against_background(predicting(self.encode(image)))

    def encode(self, image: Float[Tensor, "B M *S"]) -> list[Tensor]:
        return self.encoder(self.image_stem(image))

    def denoise(self, noisy: Noisy) -> Float[Tensor, "B C *S"]:
        """What the maps were before noise was added, as logits."""
        time = self.time(noisy.step)
        return self.denoiser(self.encoder(self.diffusion_stem(torch.cat((noisy.image, noisy.maps), 1)), time), time)

    def reweight(self, image: Float[Tensor, "B M *S"]) -> Float[Tensor, "B C *S"]:
        return self.reweighted(self.encode(image))

    @torch.no_grad()
    def ema_update(self, kept: float) -> None:
        """Move the decoder that predicts towards the mean of the two others."""
        denoising, weighted = (dict(decoder.named_parameters()) for decoder in (self.denoiser, self.reweighted))
        for name, own in self.decoder.named_parameters():
            own.mul_(kept).add_(denoising[name] + weighted[name], alpha=(1 - kept) / 2)


def against_background(logits: Float[Tensor, "B C *S"]) -> Float[Tensor, "B K *S"]:
    """Logits of the labels against background."""
    return logits[:, 1:] - logits[:, :1]
